"""Time to the same bits per byte on tiny Shakespeare, compared with nanoGPT's train.py.

    python -m benchmarks.time_to_loss --nanogpt PATH

PATH is a checkout of github.com/karpathy/nanoGPT, which is copied and not changed. Both sides train
on the first 90 % of the text, with the same number of parameters and the same cores. One function
scores both on the last 10 %. nanoGPT runs by the command that its README gives for a CPU, and its
last score is the target for both. Both sides prepare their tokens before the clock starts.
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

from benchmarks.checkpoint_copies import CheckpointCopies
from benchmarks.sides import (
    Command,
    Engine,
    Machine,
    option_parser,
    print_json,
    rotated,
    running_ray,
    spread,
    temporary_folder,
    warn,
)
from orchestrator.infer.trained_model import load_processor
from orchestrator.job.file import load_job
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder

TRAINED = 0.9  # share of the text; the rest is scored
JOB = {
    "name": "time-to-loss",
    # Two documents are not learned: a job must have a validation and a test split.
    "data": {"validation_fraction": 0.001, "test_fraction": 0.001, "max_document_bytes": 4096},
    "tokenizer": {"vocab_size": 1024},
    # The vocabulary is larger than nanoGPT's, so a smaller d_ff makes up for its parameters.
    "model": {"num_layers": 4, "d_model": 128, "num_heads": 4, "d_ff": 400, "max_seq_len": 64},
    "train": {
        "steps": 100,
        "global_batch_size": 16,
        "lr": 2e-2,
        "warmup_steps": 10,
        "eval_every": 1000,  # only at the end
        "eval_rows": 8,
        "checkpoint_every": 10,
    },
    "cluster": {"workers": 2},
}
# From nanoGPT's README, and the last option, which saves the last iteration too.
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
    """The checkpoints of one training."""

    start: float  # seconds from the command to the end of the first step
    points: list[Point]

    def reached(self, target: float) -> float | None:
        """Seconds from the command to the first checkpoint with at most `target` bits per byte;
        None if there is none."""
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
        ours = ThisEngine(folder, machine, text, cut, options.overrides)
        for number in range(options.rounds):
            machine.round_begins()
            for side in rotated(list(curves), number):
                curve = peer.run(machine) if side == PEER else ours.run(side)
                curves[side].append(curve)
                print(f"round {number + 1}, {side}: {curve.points[-1]}", file=sys.stderr)
        compare_parameters(peer.parameters, ours.parameters)
    report(curves, machine)


def _options() -> Any:
    parser = option_parser(__doc__)
    parser.set_defaults(rounds=2)
    data = os.environ.get("ORCHESTRATOR_DATA", "data")
    text = Path(data) / "text_generation" / "tinyshakespeare.txt"
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--nanogpt-options", default="", help="for example --max_iters=50")
    parser.add_argument("--nanogpt-threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--text", type=Path, default=text, help="tiny Shakespeare")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides of this engine's job"
    )
    options = parser.parse_args()
    for path in (options.nanogpt / "train.py", options.text):
        if not path.exists():
            parser.error(f"{path} does not exist: see benchmarks/README.md")
    return options


class NanoGPT:
    """nanoGPT's training script, in a copy of its checkout."""

    def __init__(self, options: Any, folder: Path, text: str) -> None:
        self.folder = folder / "nanogpt"
        ignored = shutil.ignore_patterns(".git", "out*")
        shutil.copytree(options.nanogpt, self.folder, ignore=ignored)
        self.options = options.nanogpt_options.split()
        self.threads = options.nanogpt_threads
        self.data = self.folder / "data" / "shakespeare_char"
        (self.data / "input.txt").write_text(text)
        prepare = [sys.executable, str(self.data / "prepare.py")]  # downloads nothing: has the text
        with Command(prepare, dict(os.environ), folder / "nanogpt.log") as command:
            command.output()
        self.parameters = 0

    def run(self, machine: Machine) -> Curve:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        log = self.folder / "train.log"
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        machine.wait_until_quiet()
        arguments = [sys.executable, "-u", *NANOGPT, f"--out_dir={out}", *self.options]
        with (
            Command(arguments, dict(os.environ), log, self.folder) as command,
            CheckpointCopies(out, "ckpt.pt", "", self.folder / "copies") as checkpoints,
        ):
            first_step = _time_of_line(log, "iter 0:", command)
            command.output()
        tokens = np.fromfile(self.data / "val.bin", dtype=np.uint16)
        characters = pickle.loads((self.data / "meta.pkl").read_bytes())["itos"]
        token_bytes = np.array([len(characters[i].encode()) for i in range(len(characters))])
        points = []
        for path, written in checkpoints.copies:
            logits, length = self._load(path)
            score = bits_per_byte(logits, tokens, token_bytes, length)
            points.append(Point(written - command.started, score))
        return Curve(first_step - command.started, points)

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


class ThisEngine:
    """`orchestrator train`, which starts Ray itself or uses one that is running."""

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
            self.engine.start("prepare", overrides, environment) as command,
        ):
            command.output()
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
            self.engine.start("train", self.overrides, environment) as command,
            CheckpointCopies(
                self.engine.storage, "*/train-*/checkpoints/step-*/manifest.json",
                "model.safetensors", self.folder / "copies",
            ) as checkpoints,
        ):  # fmt: skip
            command.output()
        (times,) = [times for (rank, _), times in self.engine.workers().items() if rank == 0]
        for path in self.engine.storage.glob("*/train-*"):
            shutil.rmtree(path)
        points = [
            Point(written - command.started, self._score(path))
            for path, written in checkpoints.copies
        ]
        # The first step ends when the second begins.
        return Curve(times[2] - command.started, points)

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


def _time_of_line(log: Path, beginning: str, command: Command) -> float:
    """Wait for a line of the log with this beginning; returns the time."""
    while command.process.poll() is None:
        if any(line.startswith(beginning) for line in log.read_text().splitlines()):
            return time.time()
        time.sleep(0.05)
    raise RuntimeError(f"{log} has no line {beginning}...:\n{command.output()}")


@torch.inference_mode()
def bits_per_byte(logits: Logits, tokens: Tokens, token_bytes: Tokens, length: int) -> float:
    """The cross-entropy of a text, except its first token, in bits per byte of the text. It does
    not depend on the tokenizer.

    Windows of the model's context `length` overlap by half. Each token is scored once, with at
    least half a window of context before it, except at the start of the text.
    """
    tokens = tokens.astype(np.int64)
    last = len(tokens) - 1 - length
    starts = np.append(np.arange(0, last, length // 2), last)
    scored = np.append(0, starts[:-1] + length)  # earlier windows scored up to this position
    nats = 0.0
    for i in range(0, len(starts), 64):
        targets_BT = starts[i : i + 64, None] + np.arange(1, length + 1)  # positions in the text
        x_BT, y_BT = torch.from_numpy(tokens[targets_BT - 1]), torch.from_numpy(tokens[targets_BT])
        losses = F.cross_entropy(
            logits(x_BT, y_BT).flatten(0, 1).float(), y_BT.flatten(), reduction="none"
        )
        is_new = torch.from_numpy(targets_BT > scored[i : i + 64, None]).flatten()
        nats += losses[is_new].double().sum().item()
    return nats / math.log(2) / int(token_bytes[tokens[1:]].sum())


def compare_parameters(peer: int, ours: int) -> None:
    """Print the numbers of parameters; warns if they differ by more than 2 %."""
    print(f"parameters: nanoGPT {peer:,}, ours {ours:,}")
    if abs(ours / peer - 1) > 0.02:
        warn("the parameters differ by more than 2 %")


def report(curves: dict[str, list[Curve]], machine: Machine) -> None:
    targets = [curve.points[-1].bits_per_byte for curve in curves[PEER]]
    seconds: dict[str, dict[str, list[float]]] = {}
    ratios: dict[str, dict[str, list[float]]] = {}
    print(f"bits per byte to reach: {spread(targets, 3)}")
    print(f"{'seconds to reach them':44}{'':>24}{'times as fast':>24}")
    for side, rounds in curves.items():  # the peer comes first
        side_seconds = seconds_to(targets, rounds)
        if side_seconds is None:
            warn(f"{side} did not reach nanoGPT's score in every round")
            continue
        seconds[side], ratios[side] = side_seconds, {}
        for since, values in side_seconds.items():
            peer_values = seconds[PEER][since]
            ratios[side][since] = [p / v for p, v in zip(peer_values, values, strict=True)]
            ratio = spread(ratios[side][since], 1)
            print(f"{side + ', ' + since:44}{spread(values, 1):>24}{ratio:>24}")
    result = {"benchmark": "time_to_loss", "targets": targets, "seconds": seconds, "ratios": ratios}
    points = {side: [asdict(curve) for curve in rounds] for side, rounds in curves.items()}
    print_json({**result, "curves": points, **machine.summary()})


def seconds_to(targets: list[float], rounds: list[Curve]) -> dict[str, list[float]] | None:
    """Seconds to each round's target, with the start and without it; None if a round misses its
    target."""
    from_command, from_first_step = [], []
    for curve, target in zip(rounds, targets, strict=True):
        reached = curve.reached(target)
        if reached is None:
            return None
        from_command.append(reached)
        from_first_step.append(reached - curve.start)
    return {"from the command": from_command, "from the first step": from_first_step}


if __name__ == "__main__":
    main()
