"""One choice of an answer: what the engine generates becomes text, with its tokens beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.infer.generation import Generated, Token
from orchestrator.processors.decoding import Decoding
from orchestrator.processors.spelling import Spelling
from orchestrator.processors.text import TextProcessor
from orchestrator.serve.stopped_text import StoppedText

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class PlacedToken:
    """A token, and the character of the choice's text at which it begins."""

    token: Token
    offset: int


@dataclass(frozen=True)
class Part:
    """What is added to a choice. `finish_reason` is set in the last part."""

    text: str = ""
    tokens: tuple[PlacedToken, ...] = ()
    finish_reason: FinishReason | None = None

    def __add__(self, later: "Part") -> "Part":
        return Part(self.text + later.text, self.tokens + later.tokens, later.finish_reason)


@dataclass(frozen=True)
class Echo:
    """A prompt that stands at the beginning of the choice.

    `added` counts the tokens before it that are not the client's.
    """

    text: str
    added: int


class Choice:
    """Turns what is generated for one sequence into parts that can be sent at once.

    Half a character is held back, and what a stop text may begin with.
    """

    def __init__(
        self,
        processor: TextProcessor,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        echo: Echo | None = None,
        spelling: Spelling | None = None,
    ) -> None:
        """
        Args:
            spelling: lists the tokens; None lists none.
        """
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._processor = processor
        self._spelling = spelling
        self._echo = echo
        self._unsent_echo = echo.text if echo else ""
        self._begin = len(self._unsent_echo)  # of what is generated, in the choice's text
        self._decoding = Decoding(processor, prompt)
        self._decoded = 0  # characters
        self._last: int | None = None  # token
        self._text = StoppedText(stops)
        self._unsent: list[PlacedToken] = []

    def write(self, piece: Generated) -> Part:
        """The part that a piece adds. After the last part, no piece may follow."""
        self.cached_tokens += piece.cached_tokens
        text, self._unsent_echo = self._unsent_echo, ""
        prompt = self._placed_prompt(piece.prompt)
        for token in piece.tokens:
            self.completion_tokens += 1
            text += self._add(token)
            if self._text.stopped:
                break
        if piece.ending is not None and not self._text.stopped:
            text += self._text.add(self._decoding.end(), is_last=True)
        return Part(text, prompt + self._settled_tokens(piece), self._finish_reason(piece))

    def _add(self, token: Token) -> str:
        """The text that a generated token settles."""
        self._last = token.id
        new = self._decoding.add(token.id)
        if self._spelling is not None:
            begin = self._begin + self._decoded
            self._unsent.append(PlacedToken(token, begin + self._skipped(token, new)))
        self._decoded += len(new)
        return self._text.add(new)

    def _skipped(self, token: Token, new: str) -> int:
        """How much of the text that came with a token is of tokens before it."""
        assert self._spelling is not None
        own = self._spelling.text_of(token.id)
        return len(new) - len(own) if new.endswith(own) else 0

    def _settled_tokens(self, piece: Generated) -> tuple[PlacedToken, ...]:
        """The tokens whose text, or some of it, is settled."""
        end = self._begin + self._text.settled
        if piece.ending is not None and not self._text.stopped:
            count = len(self._unsent)
        else:
            count = sum(placed.offset < end for placed in self._unsent)
        settled, self._unsent = self._unsent[:count], self._unsent[count:]
        return tuple(settled)

    def _finish_reason(self, piece: Generated) -> FinishReason | None:
        if self._text.stopped or piece.ending == "stop":
            return "stop"
        if piece.ending == "length":  # an end token comes if none was set to end the text
            return "stop" if self._last == self._processor.end_token else "length"
        return None

    def _placed_prompt(self, tokens: Sequence[Token]) -> tuple[PlacedToken, ...]:
        if self._echo is None or self._spelling is None:
            return ()
        placed: list[PlacedToken] = []
        decoding, length = Decoding(self._processor), 0
        for token in tokens[self._echo.added :]:
            # As in OpenAI's API the first has no log-probability, even if it follows an end token.
            shown = token if placed else replace(token, logprob=math.nan, top=())
            new = decoding.add(token.id)
            placed.append(PlacedToken(shown, length + self._skipped(token, new)))
            length += len(new)
        return tuple(placed)
