"""A model that generates text, and how it takes a request."""

import math
import time
from dataclasses import dataclass

from fastapi import Request

from orchestrator.infer.generation import GenerationRequest, Generator
from orchestrator.processors.spelling import Spelling
from orchestrator.processors.text import TextProcessor
from orchestrator.serve.choices import Choice
from orchestrator.serve.protocol import RefusedError


@dataclass(frozen=True)
class TextModel:
    """What completions and chats are answered with.

    `default_max_tokens` are generated if a request does not say how many. A request that takes
    longer than `deadline_seconds` ends.
    """

    name: str
    processor: TextProcessor
    spelling: Spelling
    generator: Generator
    context: int
    default_max_tokens: int
    deadline_seconds: float = math.inf

    def deadline(self) -> float:
        """When a request that comes now ends at the latest, by time.monotonic()."""
        return time.monotonic() + self.deadline_seconds

    def tokens_to_generate(self, prompt_tokens: int, given: int | None) -> int:
        """How many tokens at most follow a prompt, if a request gives `given`.

        Raises:
            RefusedError: if they do not fit the model's context.
        """
        room = self.context - prompt_tokens
        most = min(self.default_max_tokens, max(room, 1)) if given is None else given
        if most > room:
            raise RefusedError(
                f"the prompt's {prompt_tokens} tokens and max_tokens = {most} are more than the "
                f"model's context of {self.context}",
                code="context_length_exceeded",
                param="max_tokens" if room > 0 else None,
            )
        return most


@dataclass(frozen=True)
class Generation:
    """The sequences that a request needs: what the engine is asked for, and what becomes of each.

    `prompt_tokens` counts each prompt once, whatever the number of its choices.
    """

    requests: list[GenerationRequest]
    choices: list[Choice]
    prompt_tokens: int


def client_of(request: Request, user: str | None) -> str:
    """Whose request it is: waiting requests of different clients take turns.

    An API key that was checked says it; else what the client says of itself, or its address.
    """
    key: str = getattr(request.state, "client", "")
    return key or user or (request.client.host if request.client else "")
