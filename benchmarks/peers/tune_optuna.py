"""The same sweep with Optuna alone, in one process, around this engine's `fit()`.

    python -m benchmarks.peers.tune_optuna FOLDER TRIALS STEPS

The sampler is TPE, as in the engine's sweep.
"""

import json
import sys
import time
from typing import Any

import optuna
import torch

from benchmarks.peers.tune_workload import fit_once, load_workload


def main() -> None:
    folder, trials, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    workload = load_workload(folder)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ends, values = [], []

    def objective(trial: optuna.Trial) -> float:
        overrides: dict[str, Any] = {
            key: trial.suggest_float(key, *domain["loguniform"], log=True)
            for key, domain in workload["space"].items()
        }
        value = fit_once(folder, overrides, steps, lambda metrics: None)
        ends.append(time.time())
        values.append(value)
        return value

    sampler = optuna.samplers.TPESampler(seed=0)
    optuna.create_study(sampler=sampler).optimize(objective, n_trials=trials)
    print(json.dumps({"ends": ends, "values": values}))


if __name__ == "__main__":
    main()
