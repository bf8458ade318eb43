"""Time to the same bits per byte on tiny Shakespeare, beside nanoGPT's own train.py.

    python -m benchmarks.time_to_loss --nanogpt PATH

PATH is a checkout of github.com/karpathy/nanoGPT; it is copied, not changed. Both sides learn from
the first 90 % of the text, have the same number of parameters and the same cores, and both are
scored here, by one function, on all of the last 10 %. nanoGPT runs by the command that its README
gives for a computer without a GPU, and its last score is the one that both have to reach. Tokens
are prepared before the clock starts, on both sides.
"""

import importlib.util
import math
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

from benchmarks.sides import (
    Engine,
    Machine,
    Started,
    parser,
    print_json,
    rotated,
    running_ray,
    spread,
    temporary_folder,
    warn,
)
from benchmarks.watch import Watch
from orchestrator.infer.trained_model import load_processor
from orchestrator.job.file import load_job
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder

TRAINED = 0.9  # of the text; the rest is scored
JOB = {
    "name": "time-to-loss",
    # Two documents are given up for the splits that a job must have.
    "data": {"validation_fraction": 0.001, "test_fraction": 0.001, "max_document_bytes": 4096},
    "tokenizer": {"vocab_size": 1024},
    # A larger vocabulary than nanoGPT's, so a smaller d_ff: the parameters are as many.
    "model": {"num_layers": 4, "d_model": 128, "num_heads": 4, "d_ff": 400, "max_seq_len": 64},
    "train": {
        "steps": 100,
        "global_batch_size": 16,
        "lr": 2e-2,
        "warmup_steps": 10,
        "eval_every": 1000,  # at the end alone
        "eval_rows": 8,
        "checkpoint_every": 10,
    },
    "cluster": {"workers": 2},
}
# From nanoGPT's README; the last one keeps the model of its last iteration.
NANOGPT = [
    "train.py",
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
    "--always_save_checkpoint=True",
]
PEER, COLD, WARM = "nanoGPT", "ours", "ours, Ray running"

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of inputs and targets (B, T)
Tokens = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Point:
    """A checkpoint: the seconds from the command to its file, and its score."""

    seconds: float
    bits_per_byte: float


@dataclass(frozen=True)
class Curve:
    start: float  # seconds from the command to the end of the first step
    points: list[Point]

    def reached(self, target: float) -> float | None:
        """Seconds from the command to the first checkpoint that is as good."""
        good = (p.seconds for p in self.points if p.bits_per_byte <= target)
        return min(good, default=None)


def main() -> None:
    options = _options()
    machine = Machine()
    text = options.text.read_text()
    cut = int(len(text) * TRAINED)
    curves: dict[str, list[Curve]] = {PEER: [], COLD: [], WARM: []}
    with temporary_folder() as folder:
        peer = NanoGPT(options, folder, text)
        ours = Ours(folder, machine, text, cut, options.overrides)
        for number in range(options.rounds):
            machine.round_begins()
            for side in rotated(list(curves), number):
                curve = peer.run(machine) if side == PEER else ours.run(side)
                curves[side].append(curve)
                print(f"round {number + 1}, {side}: {curve.points[-1]}", file=sys.stderr)
        compare_parameters(peer.parameters, ours.parameters)
    report(curves, machine)


def _options() -> Any:
    made = parser(__doc__)
    made.set_defaults(rounds=2)
    data = os.environ.get("ORCHESTRATOR_DATA", "data")
    text = Path(data) / "text_generation" / "tinyshakespeare.txt"
    made.add_argument("--nanogpt", type=Path, required=True, help="its checkout")
    made.add_argument("--nanogpt-options", default="", help="further ones, as --max_iters=50")
    made.add_argument("--nanogpt-threads", type=int, default=os.cpu_count() or 1)
    made.add_argument("--text", type=Path, default=text, help="tiny Shakespeare")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of our job")
    options = made.parse_args()
    for path in (options.nanogpt / "train.py", options.text):
        if not path.exists():
            made.error(f"{path} is not there: see benchmarks/README.md")
    return options


class NanoGPT:
    """nanoGPT's own script, in a copy of its checkout."""

    def __init__(self, options: Any, folder: Path, text: str) -> None:
        self.folder = folder / "nanogpt"
        ignored = shutil.ignore_patterns(".git", "out*")
        shutil.copytree(options.nanogpt, self.folder, ignore=ignored)
        self.options = options.nanogpt_options.split()
        self.threads = options.nanogpt_threads
        self.data = self.folder / "data" / "shakespeare_char"
        (self.data / "input.txt").write_text(text)
        prepare = [sys.executable, str(self.data / "prepare.py")]  # finds the text, fetches nothing
        with Started(prepare, dict(os.environ), folder / "nanogpt.log") as started:
            started.output()
        self.parameters = 0

    def run(self, machine: Machine) -> Curve:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        log = self.folder / "train.log"
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        machine.wait_until_quiet()
        command = [sys.executable, "-u", *NANOGPT, f"--out_dir={out}", *self.options]
        with (
            Started(command, dict(os.environ), log, self.folder) as started,
            Watch(out, "ckpt.pt", "", self.folder / "kept") as watch,
        ):
            first = _first_line(log, "iter 0:", started)
            started.output()
        tokens = np.fromfile(self.data / "val.bin", dtype=np.uint16)
        bytes_ = pickle.loads((self.data / "meta.pkl").read_bytes())["itos"]
        token_bytes = np.array([len(bytes_[i].encode()) for i in range(len(bytes_))])
        points = []
        for path, at in watch.kept:
            logits, length = self._load(path)
            score = bits_per_byte(logits, tokens, token_bytes, length)
            points.append(Point(at - started.at, score))
        return Curve(first - started.at, points)

    def _load(self, path: Path) -> tuple[Logits, int]:
        spec = importlib.util.spec_from_file_location("nanogpt_model", self.folder / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        saved = torch.load(path, weights_only=True)
        model = module.GPT(module.GPTConfig(**saved["model_args"])).eval()
        model.load_state_dict(saved["model"])
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        return lambda x_BT, y_BT: model(x_BT, y_BT)[0], saved["model_args"]["block_size"]


class Ours:
    """`orchestrator train`, with a Ray that it starts itself or with one that is running."""

    def __init__(
        self, folder: Path, machine: Machine, text: str, cut: int, overrides: list[str]
    ) -> None:
        source = folder / "train.txt"
        source.write_text(text[:cut])
        data = {**JOB["data"], "source": str(source)}  # type: ignore[dict-item]
        self.engine = Engine(folder, {**JOB, "data": data})
        self.folder, self.machine, self.overrides = folder, machine, overrides
        self.job = load_job(str(self.engine.job), overrides)
        os.environ["OMP_NUM_THREADS"] = str(self.job.cluster.cpus_per_worker)
        with (
            running_ray(machine) as environment,
            self.engine.start("prepare", overrides, environment) as started,
        ):
            started.output()
        (path,) = self.engine.storage.glob("*/prepare-*")
        prepared = PreparedData.load(Folder(str(path)))
        assert prepared is not None
        self.processor = load_processor(self.job.build_task(), prepared)
        self.tokens = np.array(self.processor.encode(text[cut:]))  # type: ignore[attr-defined]
        self.parameters = 0

    def run(self, side: str) -> Curve:
        os.environ["OMP_NUM_THREADS"] = str(self.job.cluster.cpus_per_worker)
        if side == WARM:
            with running_ray(self.machine) as environment:
                return self._train(environment)
        self.machine.wait_until_quiet()
        return self._train(dict(os.environ))

    def _train(self, environment: dict[str, str]) -> Curve:
        with (
            self.engine.start("train", self.overrides, environment) as started,
            Watch(
                self.engine.storage, "*/train-*/checkpoints/step-*/manifest.json",
                "model.safetensors", self.folder / "kept",
            ) as watch,
        ):  # fmt: skip
            started.output()
        (first,) = [times for (rank, _), times in self.engine.workers().items() if rank == 0]
        for path in self.engine.storage.glob("*/train-*"):
            shutil.rmtree(path)
        points = [Point(at - started.at, self._score(path)) for path, at in watch.kept]
        return Curve(first[2] - started.at, points)

    def _score(self, path: Path) -> float:
        model = (
            self.job.build_task()
            .build_model(self.processor.vocab_size, self.processor.num_outputs)
            .eval()
        )
        model.load_state_dict(safetensors.torch.load_file(path))
        self.parameters = model.num_parameters()
        token_bytes = self.processor.token_bytes  # type: ignore[attr-defined]
        length = self.job.model.max_seq_len
        return bits_per_byte(lambda x_BT, _: model(x_BT), self.tokens, token_bytes, length)


def _first_line(log: Path, beginning: str, started: Started) -> float:
    """When a line that begins so stood in the log."""
    while started.process.poll() is None:
        if any(line.startswith(beginning) for line in log.read_text().splitlines()):
            return time.time()
        time.sleep(0.05)
    raise RuntimeError(f"{log} has no line {beginning}...:\n{started.output()}")


@torch.inference_mode()
def bits_per_byte(logits: Logits, tokens: Tokens, token_bytes: Tokens, length: int) -> float:
    """Of the whole text but its first token, whatever the tokens are.

    Windows of the model's own `length` move on by half of it, and each token is scored once: with
    at least half a window before it, but for those at the beginning of the text.
    """
    tokens = tokens.astype(np.int64)
    last = len(tokens) - 1 - length
    starts = np.append(np.arange(0, last, length // 2), last)
    scored = np.append(0, starts[:-1] + length)  # up to this position, by the windows before
    nats = 0.0
    for i in range(0, len(starts), 64):
        at_BT = starts[i : i + 64, None] + np.arange(1, length + 1)
        x_BT, y_BT = torch.from_numpy(tokens[at_BT - 1]), torch.from_numpy(tokens[at_BT])
        losses = F.cross_entropy(
            logits(x_BT, y_BT).flatten(0, 1).float(), y_BT.flatten(), reduction="none"
        )
        new = torch.from_numpy(at_BT > scored[i : i + 64, None]).flatten()
        nats += losses[new].double().sum().item()
    return nats / math.log(2) / int(token_bytes[tokens[1:]].sum())


def compare_parameters(theirs: int, ours: int) -> None:
    print(f"parameters: nanoGPT {theirs:,}, ours {ours:,}")
    if abs(ours / theirs - 1) > 0.02:
        warn("the parameters differ by more than 2 %")


def report(curves: dict[str, list[Curve]], machine: Machine) -> None:
    targets = [curve.points[-1].bits_per_byte for curve in curves[PEER]]
    seconds: dict[str, dict[str, list[float]]] = {}
    ratios: dict[str, dict[str, list[float]]] = {}
    print(f"bits per byte to reach: {spread(targets, 3)}")
    print(f"{'seconds to reach them':44}{'':>24}{'times as fast':>24}")
    for side, rounds in curves.items():  # the peer comes first
        found = times(rounds, targets)
        if found is None:
            warn(f"{side} did not reach nanoGPT's score in every round")
            continue
        seconds[side], ratios[side] = found, {}
        for since, values in found.items():
            pairs = zip(seconds[PEER][since], values, strict=True)
            ratios[side][since] = [theirs / mine for theirs, mine in pairs]
            ratio = spread(ratios[side][since], 1)
            print(f"{side + ', ' + since:44}{spread(values, 1):>24}{ratio:>24}")
    result = {"benchmark": "time_to_loss", "targets": targets, "seconds": seconds, "ratios": ratios}
    points = {side: [asdict(curve) for curve in rounds] for side, rounds in curves.items()}
    print_json({**result, "curves": points, **machine.summary()})


def times(rounds: list[Curve], targets: list[float]) -> dict[str, list[float]] | None:
    """Seconds to each round's target, with the start and without it; None where one is missed."""
    whole, steps = [], []
    for curve, target in zip(rounds, targets, strict=True):
        reached = curve.reached(target)
        if reached is None:
            return None
        whole.append(reached)
        steps.append(reached - curve.start)
    return {"from the command": whole, "from the first step": steps}


if __name__ == "__main__":
    main()
