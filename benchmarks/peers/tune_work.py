"""What sides of the tune benchmark have in common: a job, its data, and one trial of it."""

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

VALIDATIONS = 16  # as `orchestrator.tune.schedule` has them, whose import brings Ray


def load_work(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "tune.json").read_text())
    return found


def fit_once(
    folder: str, overrides: dict[str, Any], steps: int, report: Callable[[dict[str, float]], Any]
) -> float:
    """Train the job with other values; returns the last validation's metric."""
    work = load_work(folder)
    job = Job.model_validate(work["job"]).override(
        overrides | {"train.steps": steps, "train.eval_every": -(-steps // VALIDATIONS)}
    )
    prepared = PreparedData.load(Folder(work["prepared"]))
    assert prepared is not None
    metrics = fit(job.build_task(), prepared, job.train, World(), _Reporter(report))
    assert metrics is not None
    return metrics[work["metric"]]


class _Reporter:
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
