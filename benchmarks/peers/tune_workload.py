"""The workload of the peers in the tune benchmark: a job, its data, and one trial of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.job.job import Job
from orchestrator.learn.agreement import Directive
from orchestrator.learn.fit import fit
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder

VALIDATIONS = 16  # in a trial, as in `orchestrator.tune.schedule`, which would import Ray


def load_workload(folder: str) -> dict[str, Any]:
    """The job, the prepared data, the space and the metric, as the benchmark wrote them."""
    workload: dict[str, Any] = json.loads((Path(folder) / "tune.json").read_text())
    return workload


def fit_once(
    folder: str, overrides: dict[str, Any], steps: int, report: Callable[[dict[str, float]], Any]
) -> float:
    """Train the job with a trial's values; returns the metric of the last validation."""
    workload = load_workload(folder)
    job = Job.model_validate(workload["job"]).override(
        overrides | {"train.steps": steps, "train.eval_every": -(-steps // VALIDATIONS)}
    )
    prepared = PreparedData.load(Folder(workload["prepared"]))
    assert prepared is not None
    metrics = fit(job.build_task(), prepared, job.train, World(), _Reporter(report))
    assert metrics is not None
    return metrics[workload["metric"]]


class _Reporter:
    """Passes on validations only."""

    def __init__(self, report: Callable[[dict[str, float]], Any]) -> None:
        self.report = report

    def stepped(self, step: int, seconds: float) -> None:
        pass

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        pass

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        self.report({**metrics, "step": step})

    def directive(self) -> Directive:
        return Directive.GO_ON

    def event(self, kind: str, **fields: object) -> None:
        pass
