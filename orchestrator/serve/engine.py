"""The interface of a serving engine: how a trained model answers one kind of request."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel

from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.tasks.task import Task


class Engine(ABC):
    """A trained model that answers `POST /v1/<path>`. A single thread calls `answer`.

    The types of a request and of its answer are those in the signature of `answer`: pydantic
    models, which FastAPI checks requests with.
    """

    path: ClassVar[str]  # after /v1/
    purpose: ClassVar[str]  # what the model does, as in "completes text"
    separator: ClassVar[str] = " -> "  # between a prompt and its answer, when both are shown

    @abstractmethod
    def __init__(self, job: Job, trained: TrainedModel) -> None:
        """Raises UserError if the model cannot be served in this way."""

    @abstractmethod
    def answer(self, request: Any) -> BaseModel:
        """Answer a request. Raises UserError if the request cannot be answered: HTTP status 400."""

    @staticmethod
    @abstractmethod
    def sample_request(task: Task[Any], prompt: str) -> dict[str, Any]:
        """The body of a request for a first answer, from the job's `serve.sample_prompt`."""

    @staticmethod
    @abstractmethod
    def sample_answer(content: Any) -> str:
        """The text to show of the answer to `sample_request`, given the answer's JSON."""
