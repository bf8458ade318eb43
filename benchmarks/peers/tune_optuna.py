"""Optuna alone, in one process, around this engine's own `fit()`: ... FOLDER TRIALS STEPS."""

import json
import sys
import time
from typing import Any

import optuna
import torch

from benchmarks.peers.tune_work import fit_once, load_work


def main() -> None:
    folder, trials, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    work = load_work(folder)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ends, values = [], []

    def objective(trial: optuna.Trial) -> float:
        overrides: dict[str, Any] = {
            key: trial.suggest_float(key, *domain["loguniform"], log=True)
            for key, domain in work["space"].items()
        }
        reached = fit_once(folder, overrides, steps, lambda metrics: None)
        ends.append(time.time())
        values.append(reached)
        return reached

    sampler = optuna.samplers.TPESampler(seed=0)
    optuna.create_study(sampler=sampler).optimize(objective, n_trials=trials)
    print(json.dumps({"ends": ends, "values": values}))


if __name__ == "__main__":
    main()
