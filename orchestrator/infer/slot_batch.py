"""The sequences that are generated at once, and the step that brings each of them further."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from orchestrator.infer.batch_sampling import Draw, sample_rows, tokens_with_logprobs
from orchestrator.infer.generation import Ending, Token
from orchestrator.infer.scheduling import FEWEST, choose_slot, common_prefix, prompt_shares
from orchestrator.infer.sequence import Sequence, Slot
from orchestrator.infer.slot_cache import Row
from orchestrator.infer.slot_decoder import SlotDecoder

log = logging.getLogger(__name__)
NO_LOGPROB = float("nan")
STRETCH = 2.0  # by prompts, of the time between two tokens


class SlotBatch:
    """The slots of a decoder, with the sequences in them. One thread at a time may call it."""

    def __init__(self, decoder: SlotDecoder, slots: int, prefill_chunk: int) -> None:
        self.decoder = decoder
        self.prefill_chunk = prefill_chunk
        self.slots = [Slot(number) for number in range(slots)]  # by number
        self.free = list(self.slots)  # the least recently used first
        self.admitted = 0
        self.ended = 0

    @property
    def running(self) -> list[Slot]:
        """The slots in use, by number."""
        return [slot for slot in self.slots if slot.sequence is not None]

    def admit(self, sequence: Sequence) -> None:
        """Give a sequence one of the free slots."""
        request = sequence.request
        # The last token is computed in any case: its logits choose the next one.
        reusable = [] if request.prompt_logprobs else request.prompt[:-1]
        number, prefix = choose_slot(
            (
                slot.number,
                len(slot.kept),
                common_prefix(slot.kept, reusable) if slot.source == request.source else 0,
            )
            for slot in self.free
        )
        slot = self.slots[number]
        self.free.remove(slot)
        self.admitted += 1
        sequence.number = self.admitted
        sequence.waited = time.monotonic() - sequence.submitted
        sequence.tokens = list(request.prompt)
        sequence.computed = sequence.cached_tokens = prefix
        sampling, seen_V = request.sampling, None
        if sampling.repetition_penalty != 1.0:
            vocab_size, device = self.decoder.model.vocab_size, self.decoder.device
            seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            seen_V[torch.tensor(request.prompt, device=device)] = True
        sequence.draw = Draw(sampling, sampling.generator(), seen_V)
        if request.source is not None and not (prefix and slot.source == request.source):
            sequence.encoding = self.decoder.encode(request.source, number)
        slot.sequence, slot.kept, slot.source = sequence, [], request.source

    def end(self, slot: Slot, ending: Ending, tokens: tuple[Token, ...] = ()) -> None:
        """End a slot's sequence, and free the slot with the tokens whose keys it holds."""
        sequence = slot.sequence
        assert sequence is not None
        slot.kept = sequence.tokens[: sequence.computed]
        self._free(slot)
        sequence.tell(tokens, ending)

    def fail(self, slot: Slot, error: str) -> None:
        """End a slot's sequence with an error. What the slot holds is forgotten."""
        sequence = slot.sequence
        assert sequence is not None
        slot.kept, slot.source = [], None
        with torch.inference_mode():
            self.decoder.clear(slot.number)
        self._free(slot)
        sequence.tell(ending="error", error=error)

    def _free(self, slot: Slot) -> None:
        slot.sequence = None
        self.ended += 1
        self.free.append(slot)

    @torch.inference_mode()
    def step(self) -> None:
        """Compute the next token of each sequence, and a share of the prompts that are new."""
        self._advance_encoder()
        ready = [slot for slot in self.running if _sequence(slot).encoding is None]
        if not ready:
            return
        try:
            self._compute(ready)
        except Exception as error:
            log.exception("a step of the engine failed")
            for slot in ready:
                if slot.sequence is not None:
                    self.fail(slot, f"computing the next token failed: {_one_line(error)}")

    def _advance_encoder(self) -> None:
        """Compute one layer of the encoder for one source: a whole one would hold up the tokens of
        all other sequences."""
        for slot in self.running:
            sequence = _sequence(slot)
            if sequence.encoding is None:
                continue
            try:
                is_done = next(sequence.encoding, "done") == "done"
            except Exception as error:
                log.exception("encoding a source failed")
                self.fail(slot, f"encoding the source failed: {_one_line(error)}")
                return
            if is_done:
                sequence.encoding = None
            return

    def _compute(self, ready: list[Slot]) -> None:
        counts = self._plan(ready)
        rows = [
            Row(token, slot.number, position, len(slot.source or ()))
            for slot, count in zip(ready, counts, strict=True)
            for position, token in _next_tokens(_sequence(slot), count)
        ]
        x_ND = self.decoder.forward(rows)
        read = self._read(ready, counts)
        logits_NV = self.decoder.logits(x_ND, [row for each in read for row in each])
        is_finite = logits_NV.amax(-1).isfinite().tolist()
        first, sampled = 0, []
        for slot, count, own in zip(ready, counts, read, strict=True):
            stop = first + len(own)
            if not all(is_finite[first:stop]):
                self.fail(slot, "the model's output is not finite")
            else:
                self._score_prompt(_sequence(slot), count, logits_NV[first:stop])
                _sequence(slot).computed += count
                if _sequence(slot).computed == len(_sequence(slot).tokens):
                    sampled.append((slot, stop - 1))
            first = stop
        self._add_tokens(sampled, logits_NV)

    def _plan(self, ready: list[Slot]) -> list[int]:
        """How many tokens of each slot this step computes."""
        sequences = [_sequence(slot) for slot in ready]
        new = sorted((s for s in sequences if not s.generated), key=lambda s: s.number)
        remaining = [len(s.tokens) - s.computed for s in new]
        shares = prompt_shares(remaining, self._prompt_budget(len(ready) - len(new), len(ready)))
        by_sequence = dict(zip(new, shares, strict=True))
        return [by_sequence.get(sequence, 1) for sequence in sequences]

    def _prompt_budget(self, decoding: int, running: int) -> int:
        """How many prompt tokens a step computes beside the tokens of other sequences: so many that
        it takes at most about twice as long as one token of all running sequences, by the times of
        this machine. Of the decoding ones alone it would not do: while few of them decode, the
        others would get few tokens, so that few went on to decode."""
        if not decoding or self.decoder.device.type != "cpu":
            return self.prefill_chunk
        within = self.decoder.rows_within(STRETCH, running)
        return min(self.prefill_chunk, max(within - decoding, FEWEST))

    def _read(self, ready: list[Slot], counts: list[int]) -> list[list[int]]:
        """The rows of each slot whose logits are read: the last one of all its tokens, and those
        that predict tokens of a prompt."""
        read, first = [], 0
        for slot, count in zip(ready, counts, strict=True):
            sequence, stop = _sequence(slot), first + count
            scores = sequence.request.prompt_logprobs and not sequence.generated
            is_last = sequence.computed + count == len(sequence.tokens)
            read.append(list(range(first if scores else stop - is_last, stop)))
            first = stop
        return read

    def _score_prompt(self, sequence: Sequence, count: int, logits_NV: Tensor) -> None:
        request = sequence.request
        if not request.prompt_logprobs or sequence.generated:
            return
        if not sequence.prompt:
            sequence.prompt.append(Token(request.prompt[0], NO_LOGPROB))
        scored = request.prompt[sequence.computed + 1 : sequence.computed + count + 1]
        top = request.logprobs or 0
        sequence.prompt += tokens_with_logprobs(logits_NV[: len(scored)], scored, top)

    def _add_tokens(self, sampled: list[tuple[Slot, int]], logits_NV: Tensor) -> None:
        """Draw the next tokens by these rows of the logits, and pass them on."""
        if not sampled:
            return
        sequences = [_sequence(slot) for slot, _ in sampled]
        logits_NV = logits_NV[[row for _, row in sampled]]
        ids = sample_rows(logits_NV, [_draw(sequence) for sequence in sequences]).tolist()
        tokens = [Token(id, NO_LOGPROB) for id in ids]
        asked = [i for i, s in enumerate(sequences) if s.request.logprobs is not None]
        if asked:
            tops = [sequences[i].request.logprobs or 0 for i in asked]
            scored = tokens_with_logprobs(logits_NV[asked], [ids[i] for i in asked], max(tops))
            for i, top, token in zip(asked, tops, scored, strict=True):
                tokens[i] = replace(token, top=token.top[:top])
        for (slot, _), token in zip(sampled, tokens, strict=True):
            self._add(slot, token)

    def _add(self, slot: Slot, token: Token) -> None:
        sequence = _sequence(slot)
        request = sequence.request
        if request.max_tokens == 0:
            self.end(slot, "length")
        elif token.id == request.end_token:
            self.end(slot, "stop")
        else:
            sequence.tokens.append(token.id)
            if (seen_V := _draw(sequence).seen_V) is not None:
                seen_V[token.id] = True
            if sequence.generated == request.max_tokens:
                self.end(slot, "length", (token,))
            else:
                sequence.tell((token,))


def _sequence(slot: Slot) -> Sequence:
    assert slot.sequence is not None
    return slot.sequence


def _draw(sequence: Sequence) -> Draw:
    assert sequence.draw is not None
    return sequence.draw


def _next_tokens(sequence: Sequence, count: int) -> Iterator[tuple[int, int]]:
    stop = sequence.computed + count
    return enumerate(sequence.tokens[sequence.computed : stop], sequence.computed)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
