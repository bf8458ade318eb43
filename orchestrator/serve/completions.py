"""Text completion with one loaded model."""

import time
import uuid

from orchestrator.artifact import PreparedData, Training
from orchestrator.checkpoint import load_weights
from orchestrator.errors import UserError
from orchestrator.fit import load_processor
from orchestrator.job import Job
from orchestrator.model.generate import Sampling, generate
from orchestrator.processors.text import TextProcessor
from orchestrator.serve.protocol import Choice, CompletionRequest, CompletionResponse, Usage


class Completer:
    """A checkpoint that continues prompts. Not safe for use by several threads at once.

    In fp32, whatever it was trained in: one token at a time, bf16 is no quicker even with AMX, and
    takes twice as long where the model is small (docs/log.md).
    """

    def __init__(self, job: Job, prepared: PreparedData, training: Training) -> None:
        task = job.build_task()
        processor = load_processor(task, prepared)
        if not isinstance(processor, TextProcessor):
            raise UserError(f"task = {job.task}: makes no text, so it cannot be served yet")
        self.processor = processor
        self.model_name = job.name
        self.default_max_tokens = job.serve.max_tokens
        self.model = task.build_model(processor.vocab_size, processor.num_outputs).eval()
        load_weights(self.model, training.checkpoint())

    def complete(self, request: CompletionRequest) -> CompletionResponse:
        """Answer a request.

        Raises:
            UserError: where it asks for another model or for more tokens than the context holds.
        """
        if request.model not in (None, self.model_name):
            raise UserError(f"model {request.model!r} is not served here; {self.model_name!r} is")
        # Documents begin after an end token, so that an empty prompt begins one.
        prompt = [self.processor.end_token, *self.processor.encode(request.prompt)]
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

    def _choice(
        self, request: CompletionRequest, prompt: list[int], max_tokens: int, index: int
    ) -> tuple[Choice, int]:
        seed = None if request.seed is None else request.seed + index
        sampling = Sampling(
            request.temperature, request.top_k, request.top_p, request.repetition_penalty, seed
        )
        tokens: list[int] = []
        finish_reason = "length"
        text = ""
        stream = generate(self.model, prompt, max_tokens, sampling, self.processor.end_token)
        for token in stream:
            tokens.append(token)
            text = self.processor.decode(tokens)
            ends = [text.index(stop) for stop in request.stops if stop in text]
            if ends:
                text, finish_reason = text[: min(ends)], "stop"
                break
        else:
            if len(tokens) < max_tokens:
                finish_reason = "stop"
        if request.echo:
            text = request.prompt + text
        return Choice.model_validate(
            {"index": index, "text": text, "finish_reason": finish_reason}
        ), len(tokens)
