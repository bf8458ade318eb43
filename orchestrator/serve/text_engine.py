"""The serving engine of models that generate text: completions, chats and their tokens."""

from typing import Any

from fastapi import FastAPI

from orchestrator.errors import UserError
from orchestrator.infer.generation import Generator
from orchestrator.infer.generation_engine import EngineLimits, GenerationEngine
from orchestrator.infer.precision import quantize_weights
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.processors.chat_template import ChatTemplate
from orchestrator.processors.spelling import Spelling
from orchestrator.processors.text import TextProcessor
from orchestrator.serve import playground
from orchestrator.serve.chat import add_chat
from orchestrator.serve.completions import add_completions
from orchestrator.serve.engine import Engine
from orchestrator.serve.engines import check_weights
from orchestrator.serve.metrics import UNOBSERVED, Observer, observed
from orchestrator.serve.text_model import TextModel
from orchestrator.serve.tokens import add_tokens
from orchestrator.tasks.task import Task


class TextEngine(Engine):
    """Continues prompts, and answers in conversations if the model has a template for them."""

    path = "completions"
    purpose = "completes text"
    separator = ""

    def __init__(
        self,
        job: Job,
        trained: TrainedModel,
        observer: Observer = UNOBSERVED,
        generator: Generator | None = None,
    ) -> None:
        """
        Args:
            generator: generates instead of an engine of this model's.
        """
        processor = trained.processor
        if not isinstance(processor, TextProcessor):
            raise UserError(f"task = {job.task}: makes no text, so it cannot complete prompts")
        check_weights(job)
        if job.serve.weights == "int8":
            quantize_weights(trained.model)
        if generator is None:
            limits = EngineLimits(job.serve.slots, max_waiting=job.serve.max_queued_requests)
            generator = GenerationEngine(trained.model, limits, trained.precision)
        self.generator = observed(generator, observer)
        self.model = TextModel(
            name=job.name,
            processor=processor,
            spelling=Spelling(processor),
            generator=self.generator,
            context=trained.model.config.max_seq_len,
            default_max_tokens=job.serve.max_tokens,
            deadline_seconds=job.serve.deadline_seconds,
        )
        self._description = playground.Description(
            model=job.name,
            task=job.task,
            text=playground.Text(
                chat=processor.chat_template is not None,
                context=self.model.context,
                max_tokens=job.serve.max_tokens,
                prompt=job.serve.sample_prompt,
            ),
        )

    def add_routes(self, api: FastAPI) -> None:
        has_template = self.model.processor.chat_template is not None
        template = ChatTemplate(self.model.processor) if has_template else None
        add_completions(api, self.model)
        add_chat(api, self.model, template)
        add_tokens(api, self.model, template)
        playground.add_routes(api, self._description)

    def close(self) -> None:
        self.generator.close()

    @staticmethod
    def sample_request(task: Task[Any], prompt: str) -> dict[str, Any]:
        return {"prompt": prompt, "temperature": 0.7, "seed": 0}

    @staticmethod
    def sample_answer(content: Any) -> str:
        return str(content["choices"][0]["text"])
