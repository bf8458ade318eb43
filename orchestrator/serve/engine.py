"""The interface of a serving engine: which requests a trained model answers, and how."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from fastapi import FastAPI

from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.metrics import UNOBSERVED, Observer
from orchestrator.tasks.task import Task


class Engine(ABC):
    """A trained model that answers `POST /v1/<path>`, and whatever routes it adds beside it."""

    path: ClassVar[str]  # of the sample request, after /v1/
    purpose: ClassVar[str]  # what the model does, as in "completes text"
    separator: ClassVar[str] = " -> "  # between a prompt and its answer, when both are shown

    @abstractmethod
    def __init__(self, job: Job, trained: TrainedModel, observer: Observer = UNOBSERVED) -> None:
        """
        Args:
            observer: counts what the engine does, under the names in `serve/metrics.py`.

        Raises:
            UserError: if the model cannot be served in this way.
        """

    @abstractmethod
    def add_routes(self, api: FastAPI) -> None:
        """Add the engine's routes. FastAPI reads from their signatures what a request may hold.

        They run on the event loop's thread unless they are plain functions or start a thread, so
        none may compute there. The errors that they raise become answers in OpenAI's envelope:
        UserError 400, RefusedError its own status, FullError 429.
        """

    @abstractmethod
    def close(self) -> None:
        """End the engine's threads: no request follows."""

    @staticmethod
    @abstractmethod
    def sample_request(task: Task[Any], prompt: str) -> dict[str, Any]:
        """The body of a request for a first answer, from the job's `serve.sample_prompt`."""

    @staticmethod
    @abstractmethod
    def sample_answer(content: Any) -> str:
        """The text to show of the answer to `sample_request`, given the answer's JSON."""
