"""The built-in tasks by name, and tasks of users by import path."""

import importlib
import inspect
from typing import Any

from orchestrator.errors import UserError, did_you_mean
from orchestrator.model.config import Family
from orchestrator.tasks.task import Task

TASKS: dict[str, Family] = {  # the default family of each
    "extractive_question_answering": "encoder",
    "language_modelling": "decoder",
    "masked_language_modelling": "encoder",
    "question_answering": "encoder_decoder",
    "text_classification": "encoder",
    "text_regression": "encoder",
    "translation": "encoder_decoder",
}


def find_task(name: str) -> type[Task[Any]]:
    """The task class of a built-in name or of an import path `package.module:Class`."""
    built_in = f"orchestrator.tasks.{name}:{name.title().replace('_', '')}"
    path = built_in if name in TASKS else name
    module_name, _, class_name = path.partition(":")
    if not class_name or not all(part.isidentifier() for part in module_name.split(".")):
        close = f"{meant} else " if (meant := did_you_mean(name, TASKS)) else ""
        raise UserError(
            f"there is no such task; {close}use {', '.join(TASKS)}, or an "
            f"import path such as my_package.my_task:MyTask"
        )
    try:
        task = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise UserError("is not a subclass of orchestrator.tasks.task.Task")
    if inspect.isabstract(task):
        missing = ", ".join(sorted(task.__abstractmethods__))
        raise UserError(f"does not define {missing}")
    return task
