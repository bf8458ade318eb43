"""Text classification: predict the label of each text, for example its sentiment."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.labels import LabelProcessor, check_labels, label_text
from orchestrator.storage.artifact import Split
from orchestrator.tasks.metrics import classification_metrics
from orchestrator.tasks.objectives import drop_words, trimmed
from orchestrator.tasks.task import Batch, LeftOut, Metric, Task


class TextClassification(Task[LabelProcessor]):
    """A text is cut to max_seq_len tokens. The classes are the labels of the training rows."""

    metric = Metric("accuracy", "max")
    columns: ClassVar[dict[str, str]] = {"text": "text", "label": "value"}
    inputs = ("text",)
    pipeline = "text-classification"
    counted = "label"
    families = ("encoder",)

    def clean(self, row: Row) -> Row | None:
        text = unicodedata.normalize("NFC", row["text"]).strip()
        if not text:
            return None
        label = row["label"]
        if label is not None and (label := label_text(label)) is None:
            raise LeftOut("no label")
        return {"text": text, "label": label}

    def fit_processor(self, rows: Iterable[Row]) -> LabelProcessor:
        return LabelProcessor.fit(
            ((row["text"], row["label"]) for row in rows),
            lambda texts: fit_text(texts, self.tokenizer, self.model, prefix_space=True),
        )

    def look(self, values: dict[Split, Counter[str]], processor: LabelProcessor) -> list[str]:
        return check_labels(values, processor)

    def load_processor(self, content: bytes) -> LabelProcessor:
        return LabelProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: LabelProcessor) -> Arrays:
        tokens = processor.text.encode_batch([row["text"] for row in rows])
        labels = [-1 if row["label"] is None else processor.number(row["label"]) for row in rows]
        return {
            **processor.text.padded("tokens", tokens, self.model.max_seq_len),
            "label": np.array(labels, dtype=np.int32),
        }

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size, "label", num_outputs)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        labels_B = batch["label"].long()
        losses_B = F.cross_entropy(
            self._logits(model, batch), labels_B, ignore_index=-1, reduction="none"
        )
        return losses_B.sum(), (labels_B >= 0).sum().float()

    def predict(self, model: torch.nn.Module, batch: Batch, processor: LabelProcessor) -> Arrays:
        probabilities_BC = self._logits(model, batch).softmax(-1)
        return {
            "probabilities": probabilities_BC.cpu().numpy(),
            "label": batch["label"].cpu().numpy(),
        }

    def score(self, predictions: Arrays) -> dict[str, float]:
        return classification_metrics(predictions["probabilities"], predictions["label"])

    def reply(self, answers: Arrays, row: int, processor: LabelProcessor) -> dict[str, Any]:
        probabilities = answers["probabilities"][row]
        return {
            "label": processor.labels[int(probabilities.argmax())],
            "probabilities": dict(zip(processor.labels, probabilities.tolist(), strict=True)),
        }

    def baselines(
        self, train: Arrays, test: Arrays, processor: LabelProcessor
    ) -> dict[str, dict[str, float]]:
        from orchestrator.tasks.baselines import label_baselines  # imports scikit-learn: slow

        return label_baselines(train, test, processor.num_outputs)

    def _logits(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """A logit for each label: float32 (B, C)."""
        tokens_BT, real_BT = trimmed(batch, "tokens")
        if model.training and self.model.dropout:
            real_BT = drop_words(real_BT, self.model.dropout)
        logits_BC: Tensor = model(tokens_BT, real_BT)
        return logits_BC.float()
