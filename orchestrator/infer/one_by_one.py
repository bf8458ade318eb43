"""A generator that serves one request after another, in one thread."""

import queue
import threading
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orchestrator.errors import UserError, first_line
from orchestrator.infer.generation import (
    Ending,
    FullError,
    Generated,
    GenerationRequest,
    Listener,
    Token,
)
from orchestrator.model.generate import device_of, sample
from orchestrator.model.transformer import Transformer


@dataclass
class OneHandle:
    """A request that waits or runs."""

    request: GenerationRequest
    listener: Listener
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class OneByOne:
    """Generates for one request after another, by `model.generate.sample`."""

    def __init__(self, model: Transformer, max_waiting: int) -> None:
        self._model = model
        self._waiting: queue.Queue[OneHandle | None] = queue.Queue()
        self._max_waiting = max_waiting
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, listener: Listener) -> OneHandle:
        needed, context = len(request.prompt) + request.max_tokens, self._model.config.max_seq_len
        if needed > context:
            raise UserError(f"{needed} tokens are more than the model's context of {context}")
        if self._waiting.qsize() >= self._max_waiting:
            raise FullError(f"{self._max_waiting} requests wait already: try again", 1.0)
        handle = OneHandle(request, listener)
        self._waiting.put(handle)
        return handle

    def close(self) -> None:
        self._closed.set()
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (handle := self._waiting.get()) is not None:
            try:
                ending = self._generate(handle)
                handle.listener(Generated(ending=ending))
            except Exception as error:  # of one request: the others go on
                handle.listener(Generated(ending="error", error=first_line(error)))

    @torch.inference_mode()
    def _generate(self, handle: OneHandle) -> Ending:
        request, model = handle.request, self._model
        random = request.sampling.generator()
        sequence = list(request.prompt)
        cache = model.new_cache(batch=1, capacity=len(sequence) + request.max_tokens)
        tokens_BT = torch.tensor([sequence], device=device_of(model))
        for count in range(max(request.max_tokens, 1)):
            if self._closed.is_set() or handle.cancelled.is_set():
                return "cancelled"
            if request.deadline is not None and time.monotonic() > request.deadline:
                return "deadline"
            logits_TV = model(tokens_BT, cache=cache)[0].float().cpu()
            if count == 0 and request.prompt_logprobs:
                handle.listener(Generated(prompt=_prompt_tokens(logits_TV, request)))
            if count == request.max_tokens:
                break
            number = sample(logits_TV[-1], request.sampling, random, sequence)
            if number == request.end_token:
                return "stop"
            sequence.append(number)
            handle.listener(Generated(tokens=(_token(logits_TV[-1], number, request),)))
            tokens_BT = torch.tensor([[number]], device=device_of(model))
        return "length"


def _prompt_tokens(logits_TV: Tensor, request: GenerationRequest) -> tuple[Token, ...]:
    later = [
        _token(logits_V, number, request)
        for logits_V, number in zip(logits_TV[:-1], request.prompt[1:], strict=True)
    ]
    return (Token(request.prompt[0], float("nan")), *later)


def _token(logits_V: Tensor, number: int, request: GenerationRequest) -> Token:
    if request.logprobs is None:
        return Token(number, float("nan"))
    logprobs_V = logits_V.log_softmax(-1)
    best = logprobs_V.topk(min(request.logprobs, len(logprobs_V)))
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    is_greedy = bool(logits_V[number] == logits_V.max())
    return Token(number, float(logprobs_V[number]), tuple(top), is_greedy)
