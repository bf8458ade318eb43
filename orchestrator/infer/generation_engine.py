"""The generation engine: requests join and leave a running batch at every token.

A thread runs turns. A turn ends the requests that are cancelled or late, gives free slots to the
next ones, and computes one step of all slots.
"""

import logging
import threading
import time
from dataclasses import dataclass

from orchestrator.errors import StageError, UserError
from orchestrator.infer.generation import Ending, FullError, GenerationRequest, Listener
from orchestrator.infer.scheduling import FairQueue, Rate
from orchestrator.infer.sequence import Sequence
from orchestrator.infer.slot_batch import SlotBatch
from orchestrator.infer.slot_cache import Room
from orchestrator.infer.slot_decoder import SlotDecoder
from orchestrator.model.transformer import Transformer
from orchestrator.storage.artifact import Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine computes and holds at once.

    `slots` sequences of up to `capacity` tokens each, `source_capacity` of an encoder_decoder's
    source (default: the model's context); `max_waiting` requests beside them; `prefill_chunk`
    prompt tokens in a step.
    """

    slots: int
    capacity: int | None = None
    source_capacity: int | None = None
    max_waiting: int = 128
    prefill_chunk: int = 128

    def __post_init__(self) -> None:
        for name in ("slots", "capacity", "source_capacity", "max_waiting", "prefill_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}: must be at least 1")

    def room(self, model: Transformer) -> Room:
        """What a slot for this model holds."""
        most = model.config.max_seq_len
        source = min(self.source_capacity or most, most) if model.encoder is not None else 0
        return Room(min(self.capacity or most, most), source)


class GenerationEngine:
    """Serves requests with one model, which it takes over (see `SlotDecoder`)."""

    def __init__(
        self, model: Transformer, limits: EngineLimits, precision: Precision = "fp32"
    ) -> None:
        if model.decoder is None:
            raise UserError("model.family = encoder: it generates no tokens; use a decoder")
        self.model = model
        self.room = limits.room(model)
        self.max_waiting = limits.max_waiting
        rows = limits.slots + limits.prefill_chunk
        self._decoder = SlotDecoder(model, limits.slots, self.room, rows, precision)
        self._batch = SlotBatch(self._decoder, limits.slots, limits.prefill_chunk)
        self._queue: FairQueue[Sequence] = FairQueue()
        self._rate = Rate()
        self._changed = threading.Condition()  # guards the queue and _is_closed
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def cache_bytes(self) -> int:
        """The memory of all slots' keys and values, allocated once."""
        return self._decoder.cache.bytes

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return len(self._batch.slots) - len(self._batch.free)

    @property
    def waiting(self) -> int:
        """How many requests have none yet."""
        return len(self._queue)

    @property
    def cache_usage(self) -> float:
        """The share of the slots' tokens that running requests fill."""
        filled = sum(slot.sequence.computed for slot in self._batch.running if slot.sequence)
        return filled / (len(self._batch.slots) * self.room.tokens)

    def submit(self, request: GenerationRequest, listener: Listener) -> Sequence:
        """Queue a request, from any thread. `listener` is called by the engine's thread.

        Raises:
            UserError: if it does not fit the model.
            FullError: if too many requests wait.
            StageError: if the engine is closed.
        """
        check(request, self.model, self.room)
        sequence = Sequence(request, listener)
        with self._changed:
            if self._is_closed:
                raise StageError("the engine is closed and takes no more requests")
            # Requests for which a slot is free wait for the end of a step only.
            if len(self._queue) - len(self._batch.free) >= self.max_waiting:
                seconds = self._rate.retry_after()
                raise FullError(
                    f"{len(self._queue)} requests wait already: try again in {seconds:.0f} s",
                    retry_after=seconds,
                )
            self._queue.push(request.client, sequence)
            self._changed.notify()
        return sequence

    def close(self) -> None:
        """End all requests as cancelled, and the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._is_closed or self._queue or self.running):
                    self._changed.wait()
                if self._is_closed:
                    break
            try:
                self._turn()
            except Exception as error:
                log.exception("the engine failed: its running requests end")
                for slot in self._batch.running:
                    self._batch.fail(slot, f"the engine failed: {error}")
        with self._changed:
            waiting = self._queue.remove(lambda _: True)
        for sequence in waiting:
            sequence.tell(ending=sequence.leaves or "cancelled")
        for slot in self._batch.running:
            assert slot.sequence is not None
            self._batch.end(slot, slot.sequence.leaves or "cancelled")

    def _turn(self) -> None:
        now = time.monotonic()
        with self._changed:
            left = self._queue.remove(lambda sequence: _reason_to_leave(sequence, now) is not None)
        for sequence in left:
            sequence.tell(ending=_reason_to_leave(sequence, now))
        for slot in self._batch.running:
            if slot.sequence is not None and (ending := _reason_to_leave(slot.sequence, now)):
                self._batch.end(slot, ending)
        with self._changed:
            while self._batch.free and self._queue:
                self._batch.admit(self._queue.pop())
        ended = self._batch.ended
        self._batch.step()
        for _ in range(self._batch.ended - ended):
            self._rate.count()


def _reason_to_leave(sequence: Sequence, now: float) -> Ending | None:
    if sequence.leaves is not None:
        return sequence.leaves
    deadline = sequence.request.deadline
    return "deadline" if deadline is not None and now >= deadline else None


def check(request: GenerationRequest, model: Transformer, room: Room) -> None:
    """Refuse a request that the model cannot compute.

    Raises:
        UserError: naming the field.
    """
    length = len(request.prompt)
    if not request.prompt:
        raise UserError("prompt: must have at least one token")
    if request.max_tokens < 0:
        raise UserError(f"max_tokens = {request.max_tokens}: must not be negative")
    if length + request.max_tokens > room.tokens:
        raise UserError(
            f"prompt: its {length} tokens + max_tokens = {request.max_tokens} do not fit the "
            f"context of {room.tokens} tokens"
        )
    if (request.logprobs or 0) < 0:
        raise UserError(f"logprobs = {request.logprobs}: must not be negative")
    for name, tokens in (("prompt", request.prompt), ("source", request.source or [])):
        worst = next((t for t in tokens if not 0 <= t < model.vocab_size), None)
        if worst is not None:
            raise UserError(
                f"{name}: token {worst} is not in the vocabulary: 0 to {model.vocab_size - 1}"
            )
    if (model.encoder is not None) != (request.source is not None):
        takes = "needs" if model.encoder is not None else "takes no"
        raise UserError(f"source: model.family = {model.config.family} {takes} source tokens")
    if request.source is not None and not 1 <= len(request.source) <= room.source:
        raise UserError(f"source: it has {len(request.source)} tokens, not 1 to {room.source}")
