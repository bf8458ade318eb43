"""All serving engines. A new one is a file in this folder and a line in `ENGINES`.

Only the engine that a job's task names is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.tasks.task import Task

if TYPE_CHECKING:  # a command checks the name of an engine without waiting for torch
    from orchestrator.serve.engine import Engine

ENGINES = {  # by the name that `Task.serves` gives
    "completions": "orchestrator.serve.text_engine:TextEngine",
    "predictions": "orchestrator.serve.predictions:PredictionEngine",
}


def engine_of(task: Task[Any]) -> type[Engine]:
    """The engine that serves models of a task. Raises UserError if there is none of that name."""
    check_engine(task)
    module, name = ENGINES[task.serves].split(":")
    engine: type[Engine] = getattr(importlib.import_module(module), name)
    return engine


def check_weights(job: Job) -> None:
    """Raises UserError if this job's model cannot be served with `serve.weights`."""
    if job.serve.weights == "fp32":
        return
    wrong = f"serve.weights = {job.serve.weights}: "
    if job.build_task().serves != "completions":
        raise UserError(f"{wrong}only models that generate text have them, not {job.task}")
    if job.gpus_per_replica:
        raise UserError(f"{wrong}they are for CPUs: set serve.gpus_per_replica to 0")


def check_vllm(job: Job) -> None:
    """Raises UserError if vLLM shall serve this job's model, and cannot."""
    if job.serve.engine != "vllm":
        return
    from orchestrator.model import hf  # with torch

    if job.build_task().serves != "completions":
        raise UserError(f"serve.engine = vllm: only models that generate text, not {job.task}")
    if not hf.has_architecture(job.model):
        model = job.model
        raise UserError(
            f"serve.engine = vllm: no architecture of Hugging Face's has norm = {model.norm}, "
            f"positions = {model.positions}, activation = {model.activation}: set serve.engine to "
            f"own"
        )


def check_engine(task: Task[Any]) -> None:
    """Raises UserError if the task names an engine that does not exist."""
    if task.serves not in ENGINES:
        raise UserError(
            f"{type(task).__name__}.serves = {task.serves!r}: no such serving engine; known are "
            f"{', '.join(ENGINES)}"
        )
