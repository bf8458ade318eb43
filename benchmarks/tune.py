"""Sweeps beside Ray Tune with nested trainers, and beside Optuna in one process.

    python -m benchmarks.tune

One model, the same data, space and `fit()` on all sides. Every side is started anew in each round,
in an order that moves on from round to round. Then ASHA beside the whole grid, over several seeds.
Prints a table, ratios, and at the end one line of JSON.
"""

import json
import os
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
)
from orchestrator.storage.folder import Folder
from orchestrator.tune.records import Trial, read_trials

STEPS = 160
SPACE = {
    "train.lr": {"loguniform": [3e-4, 1e-1]},
    "train.weight_decay": {"loguniform": [1e-3, 1.0]},
}
JOB: dict[str, Any] = {
    "name": "benchmark",
    "data": {"source": "python-stdlib"},
    "tokenizer": {"vocab_size": 512},
    "model": {"num_layers": 2, "d_model": 64, "num_heads": 2, "max_seq_len": 64},
    "train": {"global_batch_size": 16, "warmup_steps": 10, "eval_rows": 64},
    "tune": {"steps": STEPS, "scheduler": "none", "search": "tpe", "space": SPACE},
}
# Of a grid, so that the best of it is known.
GRID = {
    "train.lr": {"choice": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]},
    "train.optimizer": {"choice": ["adamw", "muon"]},
    "train.weight_decay": {"choice": [0.01, 0.3]},
    "model.num_layers": {"choice": [1, 2]},
}
GRID_SIZE, GRID_STEPS = 48, 128
TRIALS = {"ours": 32, "optuna": 16, "nested": 8}  # about a minute of work each; nested ones more
SHORT = 64  # trials of one step, where what is beside the work is looked for
SKIPPED = 4  # trials, before the pace is looked at


@dataclass(frozen=True)
class Ended:
    """When the command was started, and when each of its trials ended with what."""

    command: float
    ends: list[float]
    values: list[float]

    @property
    def seconds_a_trial(self) -> float:
        """From one end to the next, on all cores that the side uses."""
        skipped = min(SKIPPED, len(self.ends) // 2)
        return (self.ends[-1] - self.ends[skipped - 1]) / (len(self.ends) - skipped)

    def seconds_to(self, value: float) -> float:
        """From the command until a trial came to a value as good; infinite where none did."""
        times = [end for end, v in zip(self.ends, self.values, strict=True) if v <= value]
        return min(times, default=float("inf")) - self.command


def main() -> None:
    options = _options()
    machine = Machine()
    os.environ["OMP_NUM_THREADS"] = "1"
    rounds: list[dict[str, Ended]] = []
    with temporary_folder() as folder:
        engine = Engine(folder, JOB)
        prepare(engine, machine, folder)
        for number in range(options.rounds):
            machine.round_begins()
            found = {}
            for name in rotated(list(TRIALS), number):
                found[name] = run(name, engine, machine, folder, TRIALS[name])
                pace = 60 / found[name].seconds_a_trial
                print(f"round {number + 1}, {name}: {pace:.1f} trials a minute", file=sys.stderr)
            # One at a time: a second actor is still starting when the first has done them all.
            overrides = [f"tune.trials={SHORT}", "tune.steps=1"]
            found["ours, short"] = run_ours(engine, machine, overrides, cores=1)[0]
            found["optuna, short"] = run("optuna", engine, machine, folder, SHORT, steps=1)
            rounds.append(found)
        asha = [compare_asha(seed, engine, machine) for seed in range(options.seeds)]
    report(rounds, asha, machine)


def _options() -> Any:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=10, help="of ASHA beside the whole grid")
    return made.parse_args()


def prepare(engine: Engine, machine: Machine, folder: Path) -> None:
    """Prepare the job's data, and write down for the peers what a trial is."""
    plain = {k: v for k, v in JOB.items() if k != "tune"}
    work = {
        "job": {**plain, "task": "language_modelling"},
        "prepared": str(engine.prepare(machine)),
        "space": SPACE,
        "metric": "loss",
    }
    (folder / "tune.json").write_text(json.dumps(work))


def run(
    name: str, engine: Engine, machine: Machine, folder: Path, trials: int, steps: int = STEPS
) -> Ended:
    if name == "ours":
        return run_ours(engine, machine, [f"tune.trials={trials}", f"tune.steps={steps}"])[0]
    module = f"benchmarks.peers.tune_{name}"
    command = [sys.executable, "-m", module, str(folder), str(trials), str(steps)]
    if name == "optuna":
        machine.wait_until_quiet()
        with Started(command, dict(os.environ), folder / "peer.log") as started:
            return _ended(started)
    with (
        running_ray(machine) as environment,
        Started(command, environment, folder / "peer.log") as started,
    ):
        return _ended(started)


def _ended(started: Started) -> Ended:
    lines = [line for line in started.output().splitlines() if line.startswith('{"ends"')]
    found = json.loads(lines[-1])
    return Ended(started.at, found["ends"], found["values"])


def run_ours(
    engine: Engine, machine: Machine, overrides: list[str], cores: int | None = None
) -> tuple[Ended, list[Trial]]:
    with (
        running_ray(machine, cores) as environment,
        engine.start("tune", overrides, environment) as started,
    ):
        started.output()
    (path,) = engine.storage.glob("*/tune-*")
    trials = list(read_trials(Folder(str(path))).values())
    shutil.rmtree(path)
    ended = sorted((trial.ended or 0.0, trial.metrics["loss"]) for trial in trials)
    return Ended(started.at, [at for at, _ in ended], [value for _, value in ended]), trials


def compare_asha(seed: int, engine: Engine, machine: Machine) -> dict[str, float]:
    """The whole grid, and ASHA over it: the best of each, and the seconds of their trials."""
    common = [f"train.seed={seed}", f"tune.seed={seed}", "tune.search=grid"]
    common += [f"tune.space={json.dumps(GRID)}", f"tune.trials={GRID_SIZE}"]
    common += [f"tune.steps={GRID_STEPS}", "train.warmup_steps=4"]
    found = {}
    for scheduler in ("none", "asha"):
        _, trials = run_ours(engine, machine, [*common, f"tune.scheduler={scheduler}"])
        finished = [trial for trial in trials if trial.state == "finished"]
        found[scheduler] = min(trial.metrics["loss"] for trial in finished)
        found[f"{scheduler} seconds"] = sum(trial.seconds for trial in trials)
    print(f"ASHA, seed {seed}: {found}", file=sys.stderr)
    return found


def report(rounds: list[dict[str, Ended]], asha: list[dict[str, float]], machine: Machine) -> None:
    cores = os.cpu_count() or 1
    ratios: dict[str, list[float]] = {
        "trials a minute, ours / nested trainers": [
            each["nested"].seconds_a_trial / each["ours"].seconds_a_trial for each in rounds
        ],
        "trials a minute and core, ours / Optuna in one process": [
            each["optuna"].seconds_a_trial / (cores * each["ours"].seconds_a_trial)
            for each in rounds
        ],
        "seconds that a further trial of one step takes": [
            each["ours, short"].seconds_a_trial for each in rounds
        ],
        "of these, more than in Optuna's one process": [
            each["ours, short"].seconds_a_trial - each["optuna, short"].seconds_a_trial
            for each in rounds
        ],
        "seconds to Optuna's best but 1 %, Optuna / ours": [
            each["optuna"].seconds_to(near) / each["ours"].seconds_to(near)
            for each in rounds
            if (near := 1.01 * min(each["optuna"].values)) is not None
        ],
        "ASHA's best beside the grid's, % worse": [
            100 * (each["asha"] / each["none"] - 1) for each in asha
        ],
        "ASHA's seconds of trials / the grid's": [
            each["asha seconds"] / each["none seconds"] for each in asha
        ],
    }
    for name in TRIALS:
        paces = [60 / each[name].seconds_a_trial for each in rounds]
        starts = [each[name].ends[0] - each[name].command for each in rounds]
        print(f"{name:12}{spread(paces, 1):>24} trials a minute, first after {spread(starts, 1)} s")
    print()
    for name, values in ratios.items():
        if values:
            print(f"{name:60}{spread(values, 3)}")
    print_json(
        {
            "benchmark": "tune",
            "trials_a_minute": {
                name: [round(60 / each[name].seconds_a_trial, 2) for each in rounds]
                for name in TRIALS
            },
            "ratios": {name: [round(v, 4) for v in values] for name, values in ratios.items()},
            "medians": {
                name: round(statistics.median(values), 4)
                for name, values in ratios.items()
                if values
            },
            **machine.summary(),
        }
    )


if __name__ == "__main__":
    main()
