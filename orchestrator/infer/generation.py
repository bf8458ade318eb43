"""What the generation engine is asked for, and what it gives back, token by token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestrator.errors import StageError
from orchestrator.model.generate import Sampling

Ending = Literal["stop", "length", "cancelled", "deadline", "error"]


class FullError(StageError):
    """As many requests wait as may: HTTP status 429.

    Attributes:
        retry_after: seconds until a place is likely to be free.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to generate. A client's request for `n` texts is `n` of these."""

    prompt: list[int]  # the decoder's tokens so far, at least one
    max_tokens: int  # 0: only the prompt's log-probabilities
    end_token: int | None  # generation ends before this token; None: only `max_tokens` ends it
    sampling: Sampling
    source: list[int] | None = None  # the encoder's input, of an encoder_decoder
    logprobs: int | None = None  # how many of the likeliest tokens each token comes with
    prompt_logprobs: bool = False  # whether the prompt's tokens come with theirs, too
    client: str = ""  # waiting requests of different clients take turns
    deadline: float | None = None  # by time.monotonic()


@dataclass(frozen=True)
class Token:
    """A token with its log-probability under the model, before temperature and top_k.

    `top` has the likeliest tokens with theirs, best first. The first token of a prompt has no
    log-probability: NaN. So has a token of a request without `logprobs`, whose `is_greedy` is
    False.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    is_greedy: bool = False  # whether it is the likeliest, by the same logits


@dataclass(frozen=True)
class Generated:
    """What a step of the engine adds to one request. `ending` is set in the last one."""

    prompt: tuple[Token, ...] = ()  # once, before the first token, if asked for
    tokens: tuple[Token, ...] = ()
    ending: Ending | None = None
    error: str = ""  # with ending "error"
    cached_tokens: int = 0  # prompt tokens that needed no computation; in the first one
    waited: float | None = None  # seconds in the queue, for metrics; in the first one


Listener = Callable[[Generated], None]  # called by the engine's thread: it must return at once


class Handle(Protocol):
    """A request that waits or runs."""

    def cancel(self, ending: Ending = "cancelled") -> None:
        """End it at the next step, and free its slot. Does nothing once it has ended.

        Args:
            ending: how it ends, for example "stop" if its text has reached a stop text.
        """


class Generator(Protocol):
    """What serves requests: `infer/generation_engine.py`, or a toy in tests."""

    def submit(self, request: GenerationRequest, listener: Listener) -> Handle:
        """Queue a request, from any thread.

        Raises:
            UserError: if it does not fit the model's context.
            FullError: if too many requests wait.
        """

    def close(self) -> None:
        """End all requests as cancelled, and the thread."""
