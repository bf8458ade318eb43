"""`orchestrator plan --calibrate`, compared with the trainings that it predicts.

    python -m benchmarks.plan

Each shape of model is prepared, planned, and trained by the command. The plan's parameters, the
peak memory of a worker and the time of the train stage stand beside the measured ones. The command
prints a table, and at the end one line of JSON.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from benchmarks.sides import ROOT, Command, Machine, print_json, temporary_folder

MEMORY, TIME = 0.15, 0.30  # the errors that a plan may have
PAIRS = 20_000  # of the translation

TRAIN = {"eval_rows": 64, "lr": 1e-3}
SHAPES: dict[str, dict[str, Any]] = {
    "decoder": {
        "task": "language_modelling",
        "data": {"source": "python-stdlib"},
        "tokenizer": {"vocab_size": 2048},
        "model": {"num_layers": 4, "d_model": 192, "num_heads": 6, "max_seq_len": 256},
        "train": {**TRAIN, "global_batch_size": 16},
        "cluster": {"workers": 2},
    },
    "decoder, wide": {
        "task": "language_modelling",
        "data": {"source": "python-stdlib"},
        "tokenizer": {"vocab_size": 16384},
        "model": {"num_layers": 3, "d_model": 384, "num_heads": 6, "max_seq_len": 128},
        "train": {**TRAIN, "global_batch_size": 8, "optimizer": "adamw"},
    },
    "encoder": {
        "task": "text_classification",
        "data": {"source": "python-stdlib", "columns": {"label": "$folder"}},
        "tokenizer": {"vocab_size": 4096},
        "model": {
            "num_layers": 3, "d_model": 192, "num_heads": 6, "max_seq_len": 256, "dropout": 0.1,
        },
        "train": {**TRAIN, "global_batch_size": 32},
        "cluster": {"workers": 2},
    },
    "encoder_decoder": {
        "task": "translation",
        "data": {"source": "pairs.jsonl"},
        "tokenizer": {"vocab_size": 4096},
        "model": {"num_layers": 2, "d_model": 192, "num_heads": 6, "max_seq_len": 64},
        "train": {**TRAIN, "global_batch_size": 64},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """A prediction and what was measured."""

    shape: str
    parameters: tuple[int, int]
    memory: tuple[float, float]  # bytes
    seconds: tuple[float, float]  # of the train stage
    step: float  # seconds, calibrated
    precision: tuple[str, str]

    @property
    def memory_error(self) -> float:
        return self.memory[0] / self.memory[1] - 1

    @property
    def time_error(self) -> float:
        return self.seconds[0] / self.seconds[1] - 1

    @property
    def holds(self) -> bool:
        exact = self.parameters[0] == self.parameters[1]
        return exact and abs(self.memory_error) <= MEMORY and abs(self.time_error) <= TIME


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    machine = Machine()
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.pop("RAY_ADDRESS", None)
    results = []
    with temporary_folder() as folder:
        write_pairs(folder / "pairs.jsonl")
        for name in options.shapes:
            results.append(compare(name, options.steps, folder, machine))
            print(describe(results[-1]), file=sys.stderr, flush=True)
    print("shape             parameters     memory, GB          train, s          step")
    for result in results:
        print(describe(result))
    shown = [
        {**asdict(r), "memory_error": r.memory_error, "time_error": r.time_error, "holds": r.holds}
        for r in results
    ]
    print_json({"shapes": shown, "machine": machine.summary()})


def describe(result: Compared) -> str:
    """One row of the table: predicted, measured, error."""
    exact = "exact" if result.parameters[0] == result.parameters[1] else "WRONG"
    memory = "{:5.2f} {:5.2f}".format(*(n / 1e9 for n in result.memory))
    seconds = "{:6.1f} {:6.1f}".format(*result.seconds)
    return (
        f"{result.shape:16} {result.parameters[1]:>11,} {exact}  "
        f"{memory} {result.memory_error:+4.0%}  {seconds} {result.time_error:+4.0%}  "
        f"{result.step:.3f}  {result.precision[1]}{'' if result.holds else '  OUT OF BOUNDS'}"
    )


def write_pairs(path: Path) -> None:
    """Pairs of neighbouring lines of the standard library, as texts to translate."""
    with path.open("w") as file:
        for number, (source, target) in enumerate(neighbours()):
            if number == PAIRS:
                return
            file.write(json.dumps({"source": source, "target": target}) + "\n")


def neighbours() -> Iterator[tuple[str, str]]:
    for module in sorted(Path(os.__file__).parent.glob("*.py")):
        lines = [line.strip() for line in module.read_text(errors="ignore").splitlines()]
        lines = [line for line in lines if len(line) > 8]
        yield from zip(lines[::2], lines[1::2], strict=False)


def compare(name: str, steps: int, folder: Path, machine: Machine) -> Compared:
    """Prepare, plan and train one shape."""
    content = json.loads(json.dumps(SHAPES[name]))
    content["train"]["steps"] = steps
    if content["data"]["source"].endswith(".jsonl"):
        content["data"]["source"] = str(folder / content["data"]["source"])
    run = name.replace(", ", "-")
    job = folder / f"{run}.yaml"
    job.write_text(yaml.safe_dump({**content, "name": run, "storage": str(folder / "runs")}))
    command(folder, "prepare", str(job))
    machine.wait_until_quiet()
    plan = json.loads(command(folder, "plan", str(job), "--calibrate", "--json"))
    machine.wait_until_quiet()
    command(folder, "train", str(job))
    manifest, events, parameters = measured(folder / "runs" / run)
    (peak,) = [event["GB"] for event in events if event["event"] == "peak memory"]
    (seconds,) = [stage["seconds"] for stage in plan["stages"] if stage["stage"] == "train"]
    return Compared(
        shape=name,
        parameters=(plan["parameters"]["total"], parameters),
        memory=(plan["memory"]["total"], 1e9 * peak),
        seconds=(seconds, manifest["seconds"]),
        step=plan["calibration"]["seconds"],
        precision=(plan["precision"], manifest["precision"]),
    )


def measured(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The manifest of a run's training, the run's events, and the parameters of its model."""
    (folder,) = [path.parent for path in run.glob("train-*/manifest.json")]
    manifest = json.loads((folder / "manifest.json").read_text())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    weights = folder / manifest["best_checkpoint"] / "model.safetensors"
    with safe_open(weights, "np") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    count = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        count += size
    return manifest, events, count


def command(folder: Path, *arguments: str) -> str:
    """Run `orchestrator` and return what it printed."""
    log = folder / "command.log"
    whole = [sys.executable, "-m", "orchestrator", *arguments]
    with Command(whole, dict(os.environ), log) as running:
        return running.output()


if __name__ == "__main__":
    main()
