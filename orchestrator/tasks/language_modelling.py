"""Language modelling: predict each token of a text from the tokens before it."""

import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks import samples
from orchestrator.tasks.metrics import language_metrics, ngram_nats
from orchestrator.tasks.objectives import token_loss
from orchestrator.tasks.task import Batch, Metric, Task

ENCODING_BATCH = 64  # documents; few, since the tokenizer's own objects take much memory


class LanguageModelling(Task[TextProcessor]):
    """All documents form one stream of tokens, with an end token after each, cut into blocks.

    A block holds max_seq_len + 1 tokens. Its last token is also the first of the next block, so
    every token is predicted once and there is no padding. `bytes` counts the bytes of text that
    the block's targets stand for.
    """

    metric = Metric("loss", "min")
    columns: ClassVar[dict[str, str]] = {"text": "text"}
    inputs = ("text",)
    serves = "completions"
    context = 256
    one_shape = True
    counts = "tokens"
    fewest_rows = 8
    families = ("decoder",)
    lines = False

    def clean(self, row: Row) -> Row | None:
        text = unicodedata.normalize("NFC", row["text"])
        return {"text": text} if text.strip() else None

    def fit_processor(self, rows: Iterable[Row]) -> TextProcessor:
        return fit_text((row["text"] for row in rows), self.tokenizer, self.model)

    def load_processor(self, content: bytes) -> TextProcessor:
        return TextProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: TextProcessor) -> Arrays:
        tokens, sizes = [np.empty(0, dtype=processor.dtype)], [np.empty(0, dtype=np.int32)]
        before, end = processor.opening, processor.end_token
        for start in range(0, len(rows), ENCODING_BATCH):
            texts = [row["text"] for row in rows[start : start + ENCODING_BATCH]]
            for document, token_bytes in processor.encode_with_bytes(texts):
                tokens.append(np.array([*before, *document, end], dtype=processor.dtype))
                sizes.append(np.array([*[0] * len(before), *token_bytes, 0], dtype=np.int32))
        length = self.model.max_seq_len
        blocks = _blocks(np.concatenate(tokens), length)
        return {"tokens": blocks, "bytes": _blocks(np.concatenate(sizes), length)[:, 1:].sum(1)}

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses_BT = self._losses(model, batch)
        # Not `torch.tensor`: copying a number to a GPU waits for all that the GPU has to do.
        return losses_BT.sum(), losses_BT.new_full((), float(losses_BT.numel()))

    def predict(self, model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
        targets_BT = batch["tokens"][:, 1:].long()
        losses_BT = self._losses(model, batch)
        return {
            "nats": losses_BT.double().sum(1).cpu().numpy(),
            "tokens": np.full(len(targets_BT), targets_BT.shape[1]),
            "bytes": batch["bytes"].cpu().numpy(),
        }

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        return samples.continuation(model, batch["tokens"][0].tolist(), processor)

    def score(self, predictions: Arrays) -> dict[str, float]:
        nats, tokens, text_bytes = (predictions[name].sum() for name in ("nats", "tokens", "bytes"))
        return language_metrics(float(nats), int(tokens), int(text_bytes))

    def baselines(
        self, train: Arrays, test: Arrays, processor: TextProcessor
    ) -> dict[str, dict[str, float]]:
        """N-grams of the training blocks, interpolated, on the same targets as the model."""
        targets = test["tokens"][:, 1:].astype(np.int64)
        text_bytes = int(test["bytes"].sum())
        orders = ngram_nats(train["tokens"], test["tokens"], processor.vocab_size)
        return {
            name: language_metrics(nats, targets.size, text_bytes) for name, nats in orders.items()
        }

    def _losses(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        tokens_BT = batch["tokens"].long()
        return token_loss(model(tokens_BT[:, :-1]), tokens_BT[:, 1:])


def _blocks(stream: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Cut a stream into blocks (rows, length + 1) that overlap by one. The rest is dropped."""
    if len(stream) <= length:
        return np.empty((0, length + 1), dtype=stream.dtype)
    return np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length].copy()
