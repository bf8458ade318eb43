"""The report of a run, for people (report.md) and for programs (report.json)."""

import io
import json

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from orchestrator.job.job import Job
from orchestrator.storage import strict_json
from orchestrator.storage.artifact import Evaluation, PreparedData, Training


def write_report(
    job: Job,
    prepared: PreparedData,
    training: Training,
    evaluation: Evaluation,
    sweep_report: str = "",
) -> None:
    """Write report.json, report.md and learning_curve.png into the evaluation's folder.

    `sweep_report` is a section of report.md: what a sweep has found.
    """
    content = {
        "job": job.name,
        "task": job.task,
        "metrics": evaluation.metrics,
        "baselines": evaluation.baselines,
        "counted": evaluation.counted,
        "validation": training.metrics,
        "steps": training.steps,
        "checkpoint": f"{training.folder}/{training.best_checkpoint}",
        "documents": prepared.documents,
        "notices": _notices(prepared, training),
        "samples": {split: prepared.rows(split) for split in prepared.splits},
        "config": job.model_dump(mode="json"),
    }
    folder = evaluation.folder
    folder.write("report.json", strict_json.dumps(content, indent=1).encode())
    folder.write("learning_curve.png", learning_curve(job, training))
    folder.write("report.md", markdown(job, prepared, training, evaluation, sweep_report).encode())


def learning_curve(job: Job, training: Training) -> bytes:
    """Training loss and validation metric against steps, as a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training loss"), ("validation", "validation metric")):
        points = [(point["step"], point[name]) for point in training.history if name in point]
        style = {"marker": "o", "linewidth": 2} if name == "validation" else {"alpha": 0.6}
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="step", title=f"{job.name}: learning curve")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def markdown(
    job: Job,
    prepared: PreparedData,
    training: Training,
    evaluation: Evaluation,
    sweep_report: str = "",
) -> str:
    names = list(evaluation.metrics)
    rows = [f"| **this model** | {_cells(evaluation.metrics, names)} |"]
    rows += [
        f"| {baseline} | {_cells(metrics, names)} |"
        for baseline, metrics in evaluation.baselines.items()
    ]
    documents = ", ".join(f"{count:,} {name}" for name, count in prepared.documents.items())
    samples = ", ".join(f"{prepared.rows(split):,} {split}" for split in prepared.splits)
    lines = [
        f"# {job.name}",
        "",
        f"Task `{job.task}`, {training.steps:,} steps, on the test split:",
        "",
        f"| | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "| --- |" + " ---: |" * len(names),
        *rows,
        "",
        *([evaluation.counted, ""] if evaluation.counted else []),
        "![Learning curve](learning_curve.png)",
        "",
        f"- documents: {documents}",
        f"- samples: {samples}",
        f"- checkpoint: `{training.folder}/{training.best_checkpoint}`, the best by validation",
        "",
        *_section("Notices", _notices(prepared, training)),
        *([sweep_report] if sweep_report else []),
        "## The job",
        "",
        "```json",
        json.dumps(job.model_dump(mode="json"), indent=1, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def _notices(prepared: PreparedData, training: Training) -> dict[str, list[str]]:
    return {stage.stage: stage.notices for stage in (prepared, training) if stage.notices}


def _section(title: str, notices: dict[str, list[str]]) -> list[str]:
    lines = [f"- {stage}: {notice}" for stage, texts in notices.items() for notice in texts]
    return [f"## {title}", "", *lines, ""] if lines else []


def _cells(metrics: dict[str, float], names: list[str]) -> str:
    return " | ".join(f"{metrics[name]:.3f}" if name in metrics else "" for name in names)
