"""Texts with numbers: a tokenizer, and where the training rows' numbers lie."""

import json
import math
import statistics
from typing import ClassVar, Self

from orchestrator.processors.text import TextProcessor


class NumberProcessor:
    """A tokenizer, and the mean and the standard deviation of the training rows' numbers."""

    file_name: ClassVar[str] = "processor.json"

    def __init__(self, text: TextProcessor, mean: float, spread: float) -> None:
        self.text = text
        self.mean = mean
        self.spread = spread
        self.vocab_size = text.vocab_size
        self.num_outputs = 1

    @classmethod
    def fit(cls, text: TextProcessor, numbers: list[float]) -> Self:
        mean = statistics.fmean(numbers)
        spread = math.sqrt(statistics.fmean((number - mean) ** 2 for number in numbers))
        return cls(text, mean, spread or 1.0)  # all are equal

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        found = json.loads(content)
        tokenizer = json.dumps(found["tokenizer"]).encode()
        return cls(TextProcessor.from_bytes(tokenizer), found["mean"], found["spread"])

    def to_bytes(self) -> bytes:
        tokenizer = json.loads(self.text.to_bytes())
        content = {"mean": self.mean, "spread": self.spread, "tokenizer": tokenizer}
        return json.dumps(content, ensure_ascii=False).encode()
