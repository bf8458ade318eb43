"""A decoder that computes rows: tokens of many slots at once."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from orchestrator.infer.precision import autocast
from orchestrator.infer.row_linear import convert_to_rows, row_counts
from orchestrator.infer.slot_cache import LayerRows, Room, Row, Rows, SlotCache
from orchestrator.model.attention import AttentionMask
from orchestrator.model.block import Block
from orchestrator.model.generate import device_of
from orchestrator.model.transformer import Transformer
from orchestrator.storage.artifact import Precision

log = logging.getLogger(__name__)
TIMES = 3  # that a step is timed


class SlotDecoder:
    """A model with the keys and values of `slots` sequences; `most_rows` is what a step may have.

    It takes the model over: its linear maps are converted in place, and it can no longer be
    trained or saved. It can still generate and predict.

    In float32 on a CPU, the logits of a row have the same bits in any company: they depend on the
    tokens before it and its source alone. Linear maps, norms and activations compute only numbers
    of rows that agree; so do the products of attention (`slot_cache.Products`).
    """

    def __init__(
        self, model: Transformer, slots: int, room: Room, most_rows: int, precision: Precision
    ) -> None:
        assert model.decoder is not None, "an encoder generates nothing"
        self.model = model
        self.precision = precision
        self.device = device_of(model)
        if self.device.type == "cpu" and precision == "fp32":
            convert_to_rows(model)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        like = torch.empty(0, device=self.device, dtype=dtype)
        self.cache = SlotCache(slots, room, model.config, model.decoder.positions, like)
        self.row_counts = row_counts(most_rows)
        self.row_counts = self._agreeing_counts()
        log.info("numbers of rows that agree: %s", ", ".join(map(str, self.row_counts)))
        self._seconds: dict[int, float] = {}
        for count in reversed(self.row_counts):
            # Fewer rows are not slower: where they seem so, another program disturbed them.
            self._seconds[count] = min([self._time(count), *self._seconds.values()])

    def forward(self, rows: list[Row]) -> Tensor:
        """Store the keys and values of the rows, which are ordered by slot and position; returns
        the decoder's output, (N, D), with rows of padding at the end."""
        with autocast(self.device, self.precision):
            return self._forward(self.cache.rows(rows, self._padded(len(rows))))

    def logits(self, x_ND: Tensor, rows: list[int]) -> Tensor:
        """The float logits, (n, V), of n of the rows."""
        assert self.model.tokens is not None
        padding = [0] * (self._padded(len(rows)) - len(rows))
        with autocast(self.device, self.precision):
            logits_BTV = self.model.head(x_ND[rows + padding][None], self.model.tokens.weight)
        return logits_BTV[0, : len(rows)].float()

    def rows_within(self, times: float, rows: int) -> int:
        """How many rows take at most so many times as long as `rows` do, without attention."""
        most = times * self._seconds[self._padded(rows)]
        return max([rows, *(count for count in self.row_counts if self._seconds[count] <= most)])

    def clear(self, slot: int) -> None:
        """Forget what a slot holds."""
        for layer in self.cache.layers:
            layer.clear(slot)

    def encode(self, source: list[int], slot: int) -> Iterator[None]:
        """Encode a source, a block each time, and keep its keys and values in a slot."""
        model, encoder, decoder = self.model, self.model.encoder, self.model.decoder
        assert encoder is not None and decoder is not None
        source_BS = torch.tensor([source], device=self.device)
        x_BSD, rotation = encoder.begin(model.embed_tokens(source_BS), slice(0, len(source)))
        mask = AttentionMask(bias_HTS=encoder.positions.attention_bias(0, len(source)))
        for block in encoder.blocks:
            with autocast(self.device, self.precision):
                x_BSD = block(x_BSD, mask, rotation)
            yield
        with autocast(self.device, self.precision):
            memory_BSD = encoder.finish(x_BSD)
            for block, layer in zip(decoder.blocks, self.cache.layers, strict=True):
                assert isinstance(block, Block) and block.cross is not None
                layer.store_source(slot, block.cross.memory(memory_BSD))

    def _forward(self, rows: Rows) -> Tensor:
        """The decoder's output for the rows, (N, D)."""
        decoder = self.model.decoder
        assert decoder is not None
        x_BTD = self.model.embed_tokens(rows.tokens_N[None])
        x_BTD, rotation = decoder.begin(x_BTD, rows.positions_N[None])
        mask = AttentionMask()  # the slots have their own, and the encoder's output
        for block, layer in zip(decoder.blocks, self.cache.layers, strict=True):
            x_BTD = block(x_BTD, mask, rotation, LayerRows(layer, rows), (x_BTD, mask))
        return decoder.finish(x_BTD)[0]

    def _padded(self, rows: int) -> int:
        """The number of rows to compute for so many."""
        return next(count for count in self.row_counts if count >= rows)

    @torch.inference_mode()
    def _agreeing_counts(self) -> list[int]:
        """The numbers of rows for which the model gives a row the same bits, on this machine: those
        of `row_counts` that agree with the highest, where the same rows stand in another order.

        Here no row attends, since the products of attention do not depend on their number.
        """
        random = torch.Generator().manual_seed(0)
        tokens_N = torch.randint(self.model.vocab_size, self.row_counts[-1:], generator=random)
        expected_NV = self._logits_without_attention(tokens_N)
        agree = [
            count
            for count in self.row_counts[:-1]
            if torch.equal(
                self._logits_without_attention(tokens_N[:count].flip(0)).flip(0),
                expected_NV[:count],
            )
        ]
        return [*agree, self.row_counts[-1]]

    def _logits_without_attention(self, tokens_N: Tensor) -> Tensor:
        return self.logits(self._without_attention(tokens_N), list(range(len(tokens_N))))

    def _without_attention(self, tokens_N: Tensor) -> Tensor:
        rows = [Row(token, 0, 0) for token in tokens_N.tolist()]
        alone = replace(self.cache.rows(rows, len(rows)), pieces=[], places=tokens_N[:0], count=0)
        with autocast(self.device, self.precision):
            return self._forward(alone)

    @torch.inference_mode()
    def _time(self, count: int) -> float:
        """The seconds of a step of so many rows, without attention: the shortest of some, as other
        programs may disturb one."""
        if self.device.type != "cpu":
            return 0.0
        tokens_N, seconds = torch.zeros(count, dtype=torch.long), []
        for _ in range(TIMES):
            start = time.perf_counter()
            self._without_attention(tokens_N)
            seconds.append(time.perf_counter() - start)
        return min(seconds)
