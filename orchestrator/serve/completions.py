"""`POST /v1/completions`: the model continues a prompt."""

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI

from orchestrator.errors import UserError
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.model.generate import Sampling, generate
from orchestrator.processors.decoding import Decoding
from orchestrator.processors.text import TextProcessor
from orchestrator.serve.engine import Engine
from orchestrator.serve.protocol import (
    Choice,
    CompletionRequest,
    CompletionResponse,
    Usage,
    require_model,
)
from orchestrator.tasks.task import Task


class CompletionEngine(Engine):
    """Continues prompts."""

    path = "completions"
    purpose = "completes text"
    separator = ""

    def __init__(self, job: Job, trained: TrainedModel) -> None:
        processor = trained.processor
        if not isinstance(processor, TextProcessor):
            raise UserError(f"task = {job.task}: makes no text, so it cannot complete prompts")
        self.processor = processor
        self.model_name = job.name
        self.default_max_tokens = job.serve.max_tokens
        self.model = trained.model
        self.thread = ThreadPoolExecutor(max_workers=1)

    def add_routes(self, api: FastAPI) -> None:
        @api.post("/v1/completions")
        async def completions(request: CompletionRequest) -> CompletionResponse:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.thread, self.answer, request)

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)

    def answer(self, request: CompletionRequest) -> CompletionResponse:
        """Generate the request's `n` texts, one after the other.

        Raises:
            UserError: if it names another model, or needs more tokens than the context holds.
        """
        require_model(request.model, self.model_name)
        # A document begins after an end token, so an empty prompt begins a new document.
        tokens = self.processor.encode_plain_batch([request.prompt])[0]
        prompt = [self.processor.end_token, *self.processor.opening, *tokens]
        context = self.model.config.max_seq_len
        max_tokens = request.max_tokens
        if max_tokens is None:
            max_tokens = min(self.default_max_tokens, context - len(prompt))
        if len(prompt) + max_tokens > context or max_tokens < 1:
            raise UserError(
                f"the prompt's {len(prompt)} tokens and max_tokens = {max(max_tokens, 1)} are more "
                f"than the model's context of {context}"
            )
        choices, generated = [], 0
        for index in range(request.n):
            choice, count = self._choice(request, prompt, max_tokens, index)
            choices.append(choice)
            generated += count
        return CompletionResponse(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self.model_name,
            choices=choices,
            usage=Usage(
                prompt_tokens=len(prompt),
                completion_tokens=generated,
                total_tokens=len(prompt) + generated,
            ),
        )

    @staticmethod
    def sample_request(task: Task[Any], prompt: str) -> dict[str, Any]:
        return {"prompt": prompt, "temperature": 0.7, "seed": 0}

    @staticmethod
    def sample_answer(content: Any) -> str:
        return str(content["choices"][0]["text"])

    def _choice(
        self, request: CompletionRequest, prompt: list[int], max_tokens: int, index: int
    ) -> tuple[Choice, int]:
        seed = None if request.seed is None else request.seed + index
        sampling = Sampling(
            request.temperature, request.top_k, request.top_p, request.repetition_penalty, seed
        )
        text, count = StoppedText(self.processor, request.stops), 0
        for token in generate(self.model, prompt, max_tokens, sampling, self.processor.end_token):
            count += 1
            if text.add(token):
                break
        else:
            text.end()
        stopped = text.stopped or count < max_tokens
        return Choice(
            index=index,
            text=request.prompt + text.text if request.echo else text.text,
            finish_reason="stop" if stopped else "length",
        ), count


class StoppedText:
    """Decodes tokens one by one into a text that ends before the first stop text."""

    def __init__(self, processor: TextProcessor, stops: list[str]) -> None:
        self.text = ""
        self.stopped = False
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._decoding = Decoding(processor)

    def add(self, token: int) -> bool:
        """Append a token; returns whether the text has reached a stop text."""
        return self._append(self._decoding.add(token))

    def end(self) -> None:
        """Append what the decoder still holds back: no further token follows."""
        self._append(self._decoding.end())

    def _append(self, new: str) -> bool:
        # A stop text may have begun earlier, by all but its last character.
        begin = max(0, len(self.text) - self._longest + 1)
        self.text += new
        ends = [end for stop in self._stops if (end := self.text.find(stop, begin)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True
        return self.stopped
