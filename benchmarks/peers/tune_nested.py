"""The same sweep with Ray Tune, where each trial runs a `TorchTrainer`, as Ray's documentation
recommends.

    python -m benchmarks.peers.tune_nested FOLDER TRIALS STEPS

A trial runs this engine's `fit()`, with the same job, space and number of steps.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from benchmarks.peers.tune_workload import fit_once, load_workload


def loop(config: dict[str, Any]) -> None:
    fit_once(config["folder"], config["overrides"], config["steps"], ray.train.report)


def trial(config: dict[str, Any]) -> None:
    TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=f"trial-{time.time_ns()}",
            storage_path=f"{config['folder']}/nested",
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


class Ends(ray.tune.Callback):
    """Records when each trial ended, and its last metric."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.ends: list[float] = []
        self.values: list[float] = []

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        self.ends.append(time.time())
        self.values.append(trial.last_result[self.metric])


def main() -> None:
    folder, trials, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    workload = load_workload(folder)
    ray.init(log_to_driver=False)
    ends = Ends(workload["metric"])
    ray.tune.Tuner(
        ray.tune.with_resources(trial, {"memory": 1.0}),  # no cores: its worker takes one
        param_space={
            "folder": folder,
            "steps": steps,
            "overrides": {
                key: ray.tune.loguniform(*domain["loguniform"])
                for key, domain in workload["space"].items()
            },
        },
        tune_config=ray.tune.TuneConfig(
            metric=workload["metric"],
            mode="min",
            num_samples=trials,
            max_concurrent_trials=os.cpu_count(),
        ),
        run_config=ray.tune.RunConfig(
            storage_path=str(Path(folder) / "nested"), callbacks=[ends], verbose=0
        ),
    ).fit()
    print(json.dumps({"ends": ends.ends, "values": ends.values}))


if __name__ == "__main__":
    main()
