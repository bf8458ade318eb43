"""Language modelling: predict each token of a text from those before it."""

import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Kind, Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks import samples
from orchestrator.tasks.metrics import language_metrics, ngram_nats
from orchestrator.tasks.objectives import token_loss
from orchestrator.tasks.task import Batch, Metric, Task

ENCODED_AT_ONCE = 64  # documents, so that few of the tokenizer's own objects are alive


class LanguageModelling(Task[TextProcessor]):
    """Documents become one stream of tokens, each ended by the end token, cut into blocks.

    A block holds max_seq_len + 1 tokens, and its last token is the next one's first, so that every
    token is predicted once and none is padding. `bytes` are those of its targets' text.
    """

    metric = Metric("loss", "min")
    columns: ClassVar[dict[str, Kind]] = {"text": "text"}
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
        for start in range(0, len(rows), ENCODED_AT_ONCE):
            texts = [row["text"] for row in rows[start : start + ENCODED_AT_ONCE]]
            for found, bytes_of in processor.encode_with_bytes(texts):
                tokens.append(np.array([*before, *found, end], dtype=processor.dtype))
                sizes.append(np.array([*[0] * len(before), *bytes_of, 0], dtype=np.int32))
        length = self.model.max_seq_len
        blocks = _windows(np.concatenate(tokens), length)
        return {"tokens": blocks, "bytes": _windows(np.concatenate(sizes), length)[:, 1:].sum(1)}

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses_BT = self._losses(model, batch)
        return losses_BT.sum(), torch.tensor(float(losses_BT.numel()), device=losses_BT.device)

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
        """Interpolated n-grams of the training blocks on the targets that the model predicts."""
        targets = test["tokens"][:, 1:].astype(np.int64)
        text_bytes = int(test["bytes"].sum())
        orders = ngram_nats(train["tokens"], test["tokens"], processor.vocab_size)
        return {
            name: language_metrics(nats, targets.size, text_bytes) for name, nats in orders.items()
        }

    def _losses(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        tokens_BT = batch["tokens"].long()
        return token_loss(model(tokens_BT[:, :-1]), tokens_BT[:, 1:])


def _windows(stream: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Blocks of length + 1, each beginning with the last one of the block before."""
    if len(stream) <= length:
        return np.empty((0, length + 1), dtype=stream.dtype)
    return np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length].copy()
