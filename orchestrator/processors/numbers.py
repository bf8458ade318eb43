"""Texts with numbers: a tokenizer, and where the training rows' numbers lie."""

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UserError
from orchestrator.processors.text import TextProcessor

# In any case: blank cells, the gaps of pandas, R, SAS, SQL and its exports, and Excel.
NO_NUMBER = ("", "?", "-", "–", "—", ".", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "\\n")
GROUPED = re.compile(r"[+-]?\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?:\.\d+)?")  # 1 234 567.8
HELD = re.compile(r"\d")
LARGEST = 1e100  # beyond it, squares and their sums leave double precision, or soon will
ROUNDING = 1e-14
FAR = 1000.0  # times what half of the numbers lie within
FURTHEST = 1e15  # standard deviations, whose square float32 still holds


def parse_number(text: str) -> float | None:
    """The number that a text holds; None where it stands for none: NaN, `?`, `n/a`, blank.

    Raises:
        ValueError: where it is no number, or none that can be standardised.
    """
    text = text.strip()
    if text.casefold() in NO_NUMBER:
        return None
    text = text.replace("\u2212", "-")  # the sign of typesetters
    try:
        number = float(re.sub(r"\s", "", text) if GROUPED.fullmatch(text) else text)
    except ValueError:
        mend = ": write digits alone, decimals behind a point" if HELD.search(text) else ""
        raise ValueError(f"{text[:80]!r} is not a number{mend}") from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise ValueError(f"{text[:80]!r} is not a finite number")
    if abs(number) > LARGEST:
        raise ValueError(f"{text[:80]!r} is too large to be standardised in double precision")
    return number


def look_at_numbers(values: Mapping[Any, Counter[str]]) -> list[str]:
    """What is unusual about the numbers of the training rows, a line each.

    Raises:
        UserError: where all are equal.
    """
    train = values["train"]
    rows = train.total()
    if len({float(text) for text in train}) == 1:
        raise UserError(
            f"all {rows:,} training rows have the number {next(iter(train))}: there is nothing to "
            f"learn; does data.columns.number name the right column?"
        )
    numbers = np.array([float(text) for text in train])
    every = np.repeat(numbers, list(train.values()))
    low, middle, high = np.quantile(every, (0.25, 0.5, 0.75))
    far = every[np.abs(every - middle) > FAR * (high - low)] if high > low else every[:0]
    if not len(far):
        return []
    return [
        f"{len(far):,} of {rows:,} training rows have a number that is far from all others, such "
        f"as {far[0]:g}: where it stands for no value, leave it blank"
    ]


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
        # Of equal numbers, the rounding of their mean alone is left.
        return cls(text, mean, spread if spread > ROUNDING * abs(mean) else 1.0)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        found = json.loads(content)
        tokenizer = json.dumps(found["tokenizer"]).encode()
        return cls(TextProcessor.from_bytes(tokenizer), found["mean"], found["spread"])

    def to_bytes(self) -> bytes:
        tokenizer = json.loads(self.text.to_bytes())
        content = {"mean": self.mean, "spread": self.spread, "tokenizer": tokenizer}
        return json.dumps(content, ensure_ascii=False).encode()

    def standardised(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """How many standard deviations they lie from the mean, within what float32 can square."""
        scaled = (numbers - self.mean) / self.spread
        return np.clip(scaled, -FURTHEST, FURTHEST).astype(np.float32)

    def restored(self, scaled: Any) -> Any:
        """The numbers, float64, of standardised ones."""
        return np.asarray(scaled, dtype=np.float64) * self.spread + self.mean
