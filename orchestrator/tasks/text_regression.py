"""Text regression: predict a number for each text, for example a rating."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.numbers import NumberProcessor, check_numbers, parse_number
from orchestrator.storage.artifact import Split
from orchestrator.tasks.metrics import regression_metrics
from orchestrator.tasks.objectives import drop_words, trimmed
from orchestrator.tasks.task import Batch, LeftOut, Metric, Task


class TextRegression(Task[NumberProcessor]):
    """A text is cut to max_seq_len tokens. The model learns standardised numbers: the distance from
    the mean of the training rows, in standard deviations."""

    metric = Metric("rmse", "min")
    columns: ClassVar[dict[str, str]] = {"text": "text", "number": "value"}
    inputs = ("text",)
    pipeline = "text-classification"
    counted = "number"
    families = ("encoder",)

    def clean(self, row: Row) -> Row | None:
        text = unicodedata.normalize("NFC", row["text"]).strip()
        if not text:
            return None
        number = row["number"]
        if number is not None:  # a request to the endpoint has none
            if (value := parse_number(number)) is None:
                raise LeftOut("no number")
            number = repr(value).removesuffix(".0")
        return {"text": text, "number": number}

    def fit_processor(self, rows: Iterable[Row]) -> NumberProcessor:
        sample = list(rows)
        texts = (row["text"] for row in sample)
        text = fit_text(texts, self.tokenizer, self.model, prefix_space=True)
        return NumberProcessor.fit(text, [float(row["number"]) for row in sample])

    def look(self, values: dict[Split, Counter[str]], processor: NumberProcessor) -> list[str]:
        return check_numbers(values)

    def load_processor(self, content: bytes) -> NumberProcessor:
        return NumberProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: NumberProcessor) -> Arrays:
        tokens = processor.text.encode_batch([row["text"] for row in rows])
        values = [math.nan if row["number"] is None else float(row["number"]) for row in rows]
        numbers = np.array(values, dtype=np.float64)
        return {
            **processor.text.padded("tokens", tokens, self.model.max_seq_len),
            "number": processor.standardised(numbers),
            "wanted": numbers,  # in the unit of the data; a column of the shards
        }

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size, "label", 1)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        errors_B = self._outputs(model, batch) - batch["number"]
        return errors_B.square().sum(), errors_B.new_tensor(float(len(errors_B)))

    def predict(self, model: torch.nn.Module, batch: Batch, processor: NumberProcessor) -> Arrays:
        """`predictions` and `targets` (B,), in the unit of the data."""
        return {
            "predictions": processor.restored(self._outputs(model, batch).cpu().numpy()),
            "targets": batch["wanted"].cpu().numpy(),
        }

    def score(self, predictions: Arrays) -> dict[str, float]:
        return regression_metrics(predictions["predictions"], predictions["targets"])

    def reply(self, answers: Arrays, row: int, processor: NumberProcessor) -> dict[str, Any]:
        return {"number": float(answers["predictions"][row])}

    def baselines(
        self, train: Arrays, test: Arrays, processor: NumberProcessor
    ) -> dict[str, dict[str, float]]:
        from orchestrator.tasks.baselines import number_baselines  # imports scikit-learn: slow

        return {
            name: regression_metrics(processor.restored(predictions), test["wanted"])
            for name, predictions in number_baselines(train, test).items()
        }

    def _outputs(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """The model's standardised numbers: float32 (B,)."""
        tokens_BT, real_BT = trimmed(batch, "tokens")
        if model.training and self.model.dropout:
            real_BT = drop_words(real_BT, self.model.dropout)
        outputs_B: Tensor = model(tokens_BT, real_BT)[:, 0].float()
        return outputs_B
