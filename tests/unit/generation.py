"""Requests run to their ends by hand, for the tests of the generation engine."""

from dataclasses import dataclass, field

from orchestrator.infer.generation import Ending, Generated, GenerationRequest, Token
from orchestrator.infer.sequence import Sequence
from orchestrator.infer.slot_batch import SlotBatch
from orchestrator.infer.slot_cache import Room
from orchestrator.infer.slot_decoder import SlotDecoder
from orchestrator.model.generate import GREEDY, Sampling
from orchestrator.model.transformer import Transformer


@dataclass
class Answer:
    """All that an engine gives back for one request."""

    parts: list[Generated] = field(default_factory=list)

    def __call__(self, part: Generated) -> None:
        self.parts.append(part)

    @property
    def tokens(self) -> list[Token]:
        return [token for part in self.parts for token in part.tokens]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def prompt(self) -> list[Token]:
        return [token for part in self.parts for token in part.prompt]

    @property
    def cached_tokens(self) -> int:
        return sum(part.cached_tokens for part in self.parts)

    @property
    def ending(self) -> Ending | None:
        return self.parts[-1].ending if self.parts else None

    @property
    def error(self) -> str:
        return self.parts[-1].error


def request(
    prompt: list[int], max_tokens: int, sampling: Sampling = GREEDY, **options: object
) -> GenerationRequest:
    options.setdefault("end_token", None)
    return GenerationRequest(prompt, max_tokens, sampling=sampling, **options)  # type: ignore[arg-type]


def make_batch(model: Transformer, slots: int = 4, prefill_chunk: int = 8) -> SlotBatch:
    length = model.config.max_seq_len
    room = Room(length, length if model.encoder is not None else 0)
    decoder = SlotDecoder(model, slots, room, slots + prefill_chunk, "fp32")
    return SlotBatch(decoder, slots, prefill_chunk)


def answers(batch: SlotBatch, requests: list[GenerationRequest], every: int = 0) -> list[Answer]:
    """The answers to requests that come one after another, `every` so many steps, as soon as a
    slot is free."""
    found = [Answer() for _ in requests]
    waiting = [Sequence(r, a) for r, a in zip(requests, found, strict=True)]
    steps = 0
    while waiting or batch.running:
        while waiting and batch.free and steps >= every * (len(requests) - len(waiting)):
            batch.admit(waiting.pop(0))
        batch.step()
        steps += 1
        assert steps < 5000
    return found
