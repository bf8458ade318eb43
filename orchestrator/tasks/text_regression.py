"""Text regression: a number for each text, such as a rating."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Kind, Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.numbers import NumberProcessor, look_at_numbers, parse_number
from orchestrator.storage.artifact import Split
from orchestrator.tasks.metrics import regression_metrics
from orchestrator.tasks.objectives import thinned, trimmed
from orchestrator.tasks.task import Batch, LeftOut, Metric, Task


class TextRegression(Task[NumberProcessor]):
    """A text is cut to max_seq_len tokens. The model learns how many standard deviations of the
    training rows' numbers it lies from their mean."""

    metric = Metric("rmse", "min")
    columns: ClassVar[dict[str, Kind]] = {"text": "text", "number": "value"}
    inputs = ("text",)
    counted = "number"
    families = ("encoder",)

    def clean(self, row: Row) -> Row | None:
        text = unicodedata.normalize("NFC", row["text"]).strip()
        if not text:
            return None
        number = row["number"]
        if number is not None:  # of a request
            if (value := parse_number(number)) is None:
                raise LeftOut("no number")
            number = repr(value).removesuffix(".0")
        return {"text": text, "number": number}

    def fit_processor(self, rows: Iterable[Row]) -> NumberProcessor:
        found = list(rows)
        texts = (row["text"] for row in found)
        text = fit_text(texts, self.tokenizer, self.model, prefix_space=True)
        return NumberProcessor.fit(text, [float(row["number"]) for row in found])

    def look(self, values: dict[Split, Counter[str]], processor: NumberProcessor) -> list[str]:
        return look_at_numbers(values)

    def load_processor(self, content: bytes) -> NumberProcessor:
        return NumberProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: NumberProcessor) -> Arrays:
        tokens = processor.text.encode_batch([row["text"] for row in rows])
        found = [math.nan if row["number"] is None else float(row["number"]) for row in rows]
        numbers = np.array(found, dtype=np.float64)
        return {
            **processor.text.padded("tokens", tokens, self.model.max_seq_len),
            "number": processor.standardised(numbers),
            "wanted": numbers,
        }

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size, "label", 1)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        errors_B = self._said(model, batch) - batch["number"]
        return errors_B.square().sum(), errors_B.new_tensor(float(len(errors_B)))

    def predict(self, model: torch.nn.Module, batch: Batch, processor: NumberProcessor) -> Arrays:
        return {
            "predictions": processor.restored(self._said(model, batch).cpu().numpy()),
            "targets": batch["wanted"].cpu().numpy(),
        }

    def score(self, predictions: Arrays) -> dict[str, float]:
        return regression_metrics(predictions["predictions"], predictions["targets"])

    def reply(self, answers: Arrays, row: int, processor: NumberProcessor) -> dict[str, Any]:
        return {"number": float(answers["predictions"][row])}

    def baselines(
        self, train: Arrays, test: Arrays, processor: NumberProcessor
    ) -> dict[str, dict[str, float]]:
        from orchestrator.tasks.baselines import number_baselines  # scikit-learn takes its time

        found = number_baselines(train, test)
        return {
            name: regression_metrics(processor.restored(said), test["wanted"])
            for name, said in found.items()
        }

    def _said(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        tokens_BT, real_BT = trimmed(batch, "tokens")
        if model.training and self.model.dropout:
            real_BT = thinned(real_BT, self.model.dropout)
        said_B: Tensor = model(tokens_BT, real_BT)[:, 0].float()
        return said_B
