"""A request that waits, runs in a slot, or has ended; and the slot that it runs in."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.infer.batch_sampling import Draw
from orchestrator.infer.generation import (
    Ending,
    Generated,
    GenerationRequest,
    Listener,
    Token,
)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Sequence:
    """A request with its state: it waits, runs in a slot, or has ended."""

    request: GenerationRequest
    listener: Listener
    leaves: Ending | None = None  # how it ends at the next step, whatever that computes
    tokens: list[int] = field(default_factory=list)  # the prompt and what was generated
    computed: int = 0  # of these, how many have keys and values in the slot
    cached_tokens: int = 0
    prompt: list[Token] = field(default_factory=list)  # with log-probabilities, if asked for
    draw: Draw | None = None
    encoding: Iterator[None] | None = None  # the source's encoder, a layer at a time
    number: int = 0  # in the order of their slots' assignment
    ending: Ending | None = None
    is_told: bool = False  # whether the listener has heard of it
    submitted: float = field(default_factory=time.monotonic)
    waited: float | None = None  # seconds until it got a slot

    def cancel(self, ending: Ending = "cancelled") -> None:
        """End it at the next step. Any thread may call this."""
        self.leaves = ending

    @property
    def generated(self) -> int:
        return max(len(self.tokens) - len(self.request.prompt), 0)

    def tell(
        self, tokens: tuple[Token, ...] = (), ending: Ending | None = None, error: str = ""
    ) -> None:
        """Pass on what a step has added. A listener that fails cancels its request."""
        prompt = () if self.is_told else tuple(self.prompt)
        cached, waited = (0, None) if self.is_told else (self.cached_tokens, self.waited)
        self.is_told, self.ending = True, ending
        try:
            self.listener(Generated(prompt, tokens, ending, error, cached, waited))
        except Exception:
            log.exception("the listener of a request failed: the request is cancelled")
            self.cancel()


@dataclass
class Slot:
    """A place for a sequence. When that has ended, its tokens stay for the next one."""

    number: int
    sequence: Sequence | None = None
    kept: list[int] = field(default_factory=list)
    source: list[int] | None = None  # of the kept tokens
