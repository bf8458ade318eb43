"""Sweeps, compared with Ray Tune with nested trainers, and with Optuna in one process.

    python -m benchmarks.tune

All sides search the same space with the same model, data and `fit()`. Each side starts anew in
every round, and the order of the sides rotates. Then ASHA is compared with the whole grid, over
several seeds. The command prints a table, ratios, and at the end one line of JSON.
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
    Command,
    Engine,
    Machine,
    option_parser,
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
# ASHA searches a grid, since the best of a grid is known.
GRID = {
    "train.lr": {"choice": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]},
    "train.optimizer": {"choice": ["adamw", "muon"]},
    "train.weight_decay": {"choice": [0.01, 0.3]},
    "model.num_layers": {"choice": [1, 2]},
}
GRID_SIZE, GRID_STEPS = 48, 128
TRIALS = {"ours": 32, "optuna": 16, "nested": 8}  # about a minute for each side, more for nested
SHORT = 64  # trials of one step, which measure the overhead of a trial
SKIPPED = 4  # first trials, which do not count


@dataclass(frozen=True)
class TrialTimes:
    """The times of a sweep, in seconds since the epoch, and the results of its trials."""

    command: float  # the command started
    ends: list[float]  # each trial ended
    values: list[float]  # each trial's metric

    @property
    def seconds_per_trial(self) -> float:
        """The mean time between the ends of two trials. Several may run at once."""
        skipped = min(SKIPPED, len(self.ends) // 2)
        return (self.ends[-1] - self.ends[skipped - 1]) / (len(self.ends) - skipped)

    def seconds_to(self, value: float) -> float:
        """From the command to the first trial with a value at most this; infinite if there is
        none."""
        times = [end for end, v in zip(self.ends, self.values, strict=True) if v <= value]
        return min(times, default=float("inf")) - self.command


def main() -> None:
    options = _options()
    machine = Machine()
    os.environ["OMP_NUM_THREADS"] = "1"
    rounds: list[dict[str, TrialTimes]] = []
    with temporary_folder() as folder:
        engine = Engine(folder, JOB)
        prepare(engine, machine, folder)
        for number in range(options.rounds):
            machine.round_begins()
            times = {}
            for name in rotated(list(TRIALS), number):
                times[name] = run(name, engine, machine, folder, TRIALS[name])
                pace = 60 / times[name].seconds_per_trial
                print(f"round {number + 1}, {name}: {pace:.1f} trials a minute", file=sys.stderr)
            # One trial at a time: the first actor would do them all while a second one starts.
            overrides = [f"tune.trials={SHORT}", "tune.steps=1"]
            times["ours, short"] = run_ours(engine, machine, overrides, cores=1)[0]
            times["optuna, short"] = run("optuna", engine, machine, folder, SHORT, steps=1)
            rounds.append(times)
        asha = [compare_asha(seed, engine, machine) for seed in range(options.seeds)]
    report(rounds, asha, machine)


def _options() -> Any:
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="for ASHA against the whole grid")
    return parser.parse_args()


def prepare(engine: Engine, machine: Machine, folder: Path) -> None:
    """Prepare the job's data, and write the peers' workload: the job of a trial, and its space."""
    without_tune = {k: v for k, v in JOB.items() if k != "tune"}
    workload = {
        "job": {**without_tune, "task": "language_modelling"},
        "prepared": str(engine.prepare(machine)),
        "space": SPACE,
        "metric": "loss",
    }
    (folder / "tune.json").write_text(json.dumps(workload))


def run(
    name: str, engine: Engine, machine: Machine, folder: Path, trials: int, steps: int = STEPS
) -> TrialTimes:
    if name == "ours":
        return run_ours(engine, machine, [f"tune.trials={trials}", f"tune.steps={steps}"])[0]
    module = f"benchmarks.peers.tune_{name}"
    arguments = [sys.executable, "-m", module, str(folder), str(trials), str(steps)]
    if name == "optuna":
        machine.wait_until_quiet()
        with Command(arguments, dict(os.environ), folder / "peer.log") as command:
            return _peer_times(command)
    with (
        running_ray(machine) as environment,
        Command(arguments, environment, folder / "peer.log") as command,
    ):
        return _peer_times(command)


def _peer_times(command: Command) -> TrialTimes:
    lines = [line for line in command.output().splitlines() if line.startswith('{"ends"')]
    result = json.loads(lines[-1])
    return TrialTimes(command.started, result["ends"], result["values"])


def run_ours(
    engine: Engine, machine: Machine, overrides: list[str], cores: int | None = None
) -> tuple[TrialTimes, list[Trial]]:
    with (
        running_ray(machine, cores) as environment,
        engine.start("tune", overrides, environment) as command,
    ):
        command.output()
    (path,) = engine.storage.glob("*/tune-*")
    trials = list(read_trials(Folder(str(path))).values())
    shutil.rmtree(path)
    ended = sorted((trial.ended or 0.0, trial.metrics["loss"]) for trial in trials)
    ends, values = [end for end, _ in ended], [value for _, value in ended]
    return TrialTimes(command.started, ends, values), trials


def compare_asha(seed: int, engine: Engine, machine: Machine) -> dict[str, float]:
    """Run the whole grid, and ASHA over it; returns the best loss and the seconds of all trials of
    each."""
    common = [f"train.seed={seed}", f"tune.seed={seed}", "tune.search=grid"]
    common += [f"tune.space={json.dumps(GRID)}", f"tune.trials={GRID_SIZE}"]
    common += [f"tune.steps={GRID_STEPS}", "train.warmup_steps=4"]
    results = {}
    for scheduler in ("none", "asha"):
        _, trials = run_ours(engine, machine, [*common, f"tune.scheduler={scheduler}"])
        finished = [trial for trial in trials if trial.state == "finished"]
        results[scheduler] = min(trial.metrics["loss"] for trial in finished)
        results[f"{scheduler} seconds"] = sum(trial.seconds for trial in trials)
    print(f"ASHA, seed {seed}: {results}", file=sys.stderr)
    return results


def report(
    rounds: list[dict[str, TrialTimes]], asha: list[dict[str, float]], machine: Machine
) -> None:
    cores = os.cpu_count() or 1
    ratios: dict[str, list[float]] = {
        "trials a minute, ours / nested trainers": [
            each["nested"].seconds_per_trial / each["ours"].seconds_per_trial for each in rounds
        ],
        "trials a minute and core, ours / Optuna in one process": [
            each["optuna"].seconds_per_trial / (cores * each["ours"].seconds_per_trial)
            for each in rounds
        ],
        "seconds that a further trial of one step takes": [
            each["ours, short"].seconds_per_trial for each in rounds
        ],
        "the same, minus Optuna's in one process": [
            each["ours, short"].seconds_per_trial - each["optuna, short"].seconds_per_trial
            for each in rounds
        ],
        "seconds to within 1 % of Optuna's best, Optuna / ours": [
            each["optuna"].seconds_to(near) / each["ours"].seconds_to(near)
            for each in rounds
            if (near := 1.01 * min(each["optuna"].values)) is not None
        ],
        "ASHA's best loss, % worse than the grid's": [
            100 * (each["asha"] / each["none"] - 1) for each in asha
        ],
        "seconds of all trials, ASHA / grid": [
            each["asha seconds"] / each["none seconds"] for each in asha
        ],
    }
    for name in TRIALS:
        paces = [60 / each[name].seconds_per_trial for each in rounds]
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
                name: [round(60 / each[name].seconds_per_trial, 2) for each in rounds]
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
