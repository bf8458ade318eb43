"""Texts with labels: a tokenizer, and the labels that the training rows hold."""

import json
from collections.abc import Callable, Iterable
from typing import ClassVar, Self

from orchestrator.processors.text import TextProcessor


class LabelProcessor:
    """A tokenizer and names of labels, numbered in their order."""

    file_name: ClassVar[str] = "processor.json"

    def __init__(self, text: TextProcessor, labels: list[str]) -> None:
        self.text = text
        self.labels = labels
        self.vocab_size = text.vocab_size
        self.num_outputs = len(labels)
        self._numbers = {label: number for number, label in enumerate(labels)}

    @classmethod
    def fit(
        cls,
        rows: Iterable[tuple[str, str]],
        fit_text: Callable[[Iterable[str]], TextProcessor],
    ) -> Self:
        """Learn from texts and their labels."""
        pairs = list(rows)
        text = fit_text(text for text, _ in pairs)
        return cls(text, sorted({label for _, label in pairs}))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        found = json.loads(content)
        tokenizer = json.dumps(found["tokenizer"]).encode()
        return cls(TextProcessor.from_bytes(tokenizer), found["labels"])

    def to_bytes(self) -> bytes:
        content = {"labels": self.labels, "tokenizer": json.loads(self.text.to_bytes())}
        return json.dumps(content, ensure_ascii=False).encode()

    def number(self, label: str) -> int:
        """-1 for a label that the training rows did not hold."""
        return self._numbers.get(label, -1)
