"""The training loop alone, without Ray, on one device: tokens a second, and the share of its peak.

    python benchmarks/gpu.py                                  # GPT-2 124M on a GPU: some minutes
    python benchmarks/gpu.py --device cpu --shape tiny --steps 4

It needs torch, numpy, pyarrow, safetensors and pydantic, and nothing else of this package's
requirements. The last line is JSON.

MFU, model FLOPs utilisation, is tokens/s x (6 N + 12 L D T) / peak: N parameters, L layers, width
D, T tokens of context (Chowdhery et al. 2022, PaLM, appendix B; all of the attention matrix counts,
although a causal model computes half of it). The peak is that of a bf16 matrix product of random
numbers, measured in the same process.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package may not be installed

import numpy as np
import torch

from orchestrator.data.config import DataConfig
from orchestrator.data.shards import write_shard
from orchestrator.job.sections import TrainConfig
from orchestrator.learn import pace
from orchestrator.learn.directive import Directive
from orchestrator.learn.fit import fit
from orchestrator.learn.memory import peak_memory
from orchestrator.learn.world import World
from orchestrator.model.config import ModelConfig
from orchestrator.processors.text import TokenizerConfig
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.language_modelling import LanguageModelling

ROWS = 2048  # of the training split
WARM_STEPS = 10  # before steps are timed; torch compiles in the first
LOSS_STEPS = 20  # in which bf16 is compared with fp32
PEAK_SECONDS = 2.0
GPT2 = {  # its parts, and one layout for all shapes
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "positions": "learned",
    "activation": "gelu_tanh",
    "bias": True,
}


class Shape(NamedTuple):
    """A model, its vocabulary, and how many rows go through it."""

    model: ModelConfig
    vocab_size: int  # a multiple of 64, which matrix units need
    global_batch_size: int
    micro_batch_size: int  # halved until it fits
    loss_batch_size: int  # where bf16 is compared with fp32, which is slow
    product: int  # rows of the matrices whose product gives the peak


SHAPES = {
    "gpt2": Shape(
        ModelConfig(num_layers=12, d_model=768, num_heads=12, max_seq_len=1024, **GPT2),
        vocab_size=50_304,
        global_batch_size=512,  # half a million tokens, as GPT-2's reproductions have
        micro_batch_size=64,
        loss_batch_size=64,
        product=8192,
    ),
    "tiny": Shape(
        ModelConfig(num_layers=2, d_model=64, num_heads=2, max_seq_len=32, **GPT2),
        vocab_size=512,
        global_batch_size=8,
        micro_batch_size=4,
        loss_batch_size=8,
        product=256,
    ),
}


class Blocks(LanguageModelling):
    """Language modelling on tokens that are drawn, not encoded: there is no tokenizer."""

    def load_processor(self, content: bytes) -> Any:
        return SimpleNamespace(**json.loads(content))


class Stopwatch:
    """A reporter that notes each loss, and the time of the steps after the first `warm` ones."""

    wants_samples = False

    def __init__(self, device: torch.device, warm: int, steps: int) -> None:
        self.device, self.warm, self.steps = device, warm, steps
        self.losses: list[float] = []
        self.began = self.ended = 0.0

    def stepped(self, step: int, seconds: float) -> None:
        if step in (self.warm, self.steps):
            torch.get_device_module(self.device).synchronize()
            self.began, self.ended = self.ended, time.perf_counter()

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        self.losses.append(values["loss"])

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        pass

    def directive(self) -> Directive:
        return Directive.GO_ON

    def event(self, kind: str, **fields: object) -> None:
        pass


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} finds no GPU here; --device cpu --shape tiny needs none"
        )
    shape = SHAPES[options.shape]
    print(f"{name_of(device)}, torch {torch.__version__}, shape {options.shape}", flush=True)
    peak = peak_flops(device, shape.product)
    print(f"bf16 matrix product: {peak / 1e12:.4g} TFLOP/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        prepared = draw(Folder(folder), shape)
        result = timed(prepared, shape, device, options) | {"peak_tflops": peak / 1e12}
        result["mfu"] = result["tokens_per_second"] * result["flops_per_token"] / peak
        print(
            f"{result['tokens_per_second']:,.0f} tokens/s, {1000 * result['step_seconds']:.4g} ms "
            f"a step, MFU {result['mfu']:.1%}, peak memory {result['peak_memory_gb']:.4g} GB",
            flush=True,
        )
        losses = compared(prepared, shape, device, result)
    for step, (bf16, fp32) in enumerate(zip(losses["bf16"], losses["fp32"], strict=True), 1):
        print(f"step {step:2}  loss in bf16 {bf16:.4f}  in fp32 {fp32:.4f}")
    gaps = [abs(a - b) for a, b in zip(losses["bf16"], losses["fp32"], strict=True)]
    about = {"device": name_of(device), "torch": torch.__version__, "shape": options.shape}
    print(json.dumps(about | result | {"losses": losses, "largest_loss_gap": max(gaps)}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--shape", default="gpt2", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU"
    )
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: must be positive")
    if options.compile is None:
        options.compile = options.device != "cpu"
    return options


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(device: torch.device, size: int) -> float:
    """Operations a second of a bf16 matrix product, the best of five tries.

    The matrices are random: of zeros, a GPU multiplies an eighth more, since it takes less power.
    """
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)

    def seconds(count: int) -> float:
        wait = torch.get_device_module(device).synchronize
        wait()
        started = time.perf_counter()
        for _ in range(count):
            torch.matmul(left, right, out=out)
        wait()
        return (time.perf_counter() - started) / count

    seconds(3)
    count = max(int(PEAK_SECONDS / 5 / seconds(3)), 3)
    return 2 * size**3 / min(seconds(count) for _ in range(5))


def draw(folder: Folder, shape: Shape) -> PreparedData:
    """Blocks of tokens as frequent as words are (Zipf): there is something to learn at once."""
    folder.write("processor.json", json.dumps(sizes := processor_of(shape)).encode())
    share = 1 / np.arange(1, sizes["vocab_size"] + 1)
    length = shape.model.max_seq_len
    chance = np.random.default_rng(0)
    splits = {}
    for split, rows in (("train", ROWS), ("validation", 8), ("test", 8)):
        drawn = chance.choice(sizes["vocab_size"], (rows, length + 1), p=share / share.sum())
        arrays = {
            "tokens": drawn.astype(np.uint16),
            "bytes": np.full(rows, length, dtype=np.int32),
        }
        splits[split] = [write_shard(folder, f"{split}.arrow", arrays)]
    return PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor="processor.json",
        splits=splits,
        documents={},
        source_bytes=1,
    ).commit()


def processor_of(shape: Shape) -> dict[str, int]:
    return {"vocab_size": shape.vocab_size, "num_outputs": 1}


def task_of(shape: Shape) -> Blocks:
    return Blocks(DataConfig(source="drawn"), TokenizerConfig(), shape.model)


def timed(
    prepared: PreparedData, shape: Shape, device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """Train in bf16 with as large a micro-batch as fits, compiled if that is possible here."""
    steps = WARM_STEPS + options.steps
    size, compiling, reason = shape.micro_batch_size, options.compile, ""
    while True:
        values = {"optimizer": options.optimizer, "compile": compiling, "micro_batch_size": size}
        values |= {"steps": steps, "global_batch_size": shape.global_batch_size}
        watch = Stopwatch(device, WARM_STEPS, steps)
        try:
            train(prepared, shape, device, watch, {**values, "precision": "bf16"})
            break
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
            print(f"out of memory; on with {size} rows at once", flush=True)
        except Exception as error:
            if not compiling:
                raise
            lines = str(error).strip().splitlines() or [""]
            compiling, reason = False, f"{type(error).__name__}: {lines[0]}"
            print(f"not compiled: {reason}", flush=True)
        free(device)
    model = shape.model
    parameters = task_of(shape).build_model(shape.vocab_size, 1).num_parameters()
    seconds = (watch.ended - watch.began) / options.steps
    return {
        "tokens_per_second": shape.global_batch_size * model.max_seq_len / seconds,
        "step_seconds": seconds,
        "steps": options.steps,
        "parameters": parameters,
        "flops_per_token": 6 * parameters
        + 12 * model.num_layers * model.d_model * model.max_seq_len,
        "peak_memory_gb": peak_memory(device) / 1e9,
        "global_batch_size": shape.global_batch_size,
        "micro_batch_size": size,
        "optimizer": options.optimizer,
        "compiled": compiling,
        "not_compiled_since": reason,
    }


def compared(
    prepared: PreparedData, shape: Shape, device: torch.device, result: dict[str, Any]
) -> dict[str, list[float]]:
    """The losses of the same steps in each precision: the same weights, rows and learning rates."""
    pace.REPORT_SECONDS = 0.0  # a loss for each step
    losses = {}
    for precision in ("bf16", "fp32"):
        free(device)
        watch = Stopwatch(device, 0, LOSS_STEPS)
        values = {
            "precision": precision,
            "steps": LOSS_STEPS,
            "optimizer": result["optimizer"],
            "compile": result["compiled"] and precision == "bf16",
            "global_batch_size": shape.loss_batch_size,
            # Numbers of fp32 take twice the memory, and without a compiler some more.
            "micro_batch_size": max(min(result["micro_batch_size"], shape.loss_batch_size) // 4, 1),
        }
        train(prepared, shape, device, watch, values)
        losses[precision] = watch.losses
    return losses


def train(
    prepared: PreparedData,
    shape: Shape,
    device: torch.device,
    watch: Stopwatch,
    values: dict[str, Any],
) -> None:
    """Run the engine's loop with these values of the section `train`."""
    usual = {"lr": 6e-4, "warmup_steps": WARM_STEPS, "eval_rows": 8, "spike_sigmas": 0.0}
    config = TrainConfig.model_validate({**usual, **values})
    fit(task_of(shape), prepared, config, World(device=device), watch)


def free(device: torch.device) -> None:
    """Give back the memory of the training before, and forget what torch has compiled for it: with
    other sizes it would compile code for any size, which is slower."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    main()
