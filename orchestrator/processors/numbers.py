"""The processor of texts with numbers: a tokenizer, and the mean and the standard deviation of the
training rows."""

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

# Missing numbers, in any case: blank cells, and the values of pandas, R, SAS, SQL and its exports,
# and Excel.
MISSING = ("", "?", "-", "–", "—", ".", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "\\n")
GROUPED = re.compile(r"[+-]?\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?:\.\d+)?")  # 1 234 567.8
DIGIT = re.compile(r"\d")
LARGEST = 1e100  # sums of squares of larger numbers could overflow double precision
ROUNDING = 1e-14  # relative error of a mean in double precision
FAR = 1000.0  # interquartile ranges from the median; a number beyond is suspicious
CLIP = 1e15  # standard deviations; float32 can still hold their square


def parse_number(text: str) -> float | None:
    """The number that a text holds; None if it is missing: blank, NaN, `?`, `n/a` and the like.

    Raises:
        ValueError: if the text is not a number, or the number is too large to be standardised.
    """
    text = text.strip()
    if text.casefold() in MISSING:
        return None
    text = text.replace("\u2212", "-")  # the typographic minus sign
    try:
        number = float(re.sub(r"\s", "", text) if GROUPED.fullmatch(text) else text)
    except ValueError:
        advice = ": write only digits, and a point before decimals" if DIGIT.search(text) else ""
        raise ValueError(f"{text[:80]!r} is not a number{advice}") from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise ValueError(f"{text[:80]!r} is not a finite number")
    if abs(number) > LARGEST:
        raise ValueError(f"{text[:80]!r} is too large to be standardised in double precision")
    return number


def check_numbers(values: Mapping[Any, Counter[str]]) -> list[str]:
    """Check the numbers of the training rows, with their counts; returns one notice for each
    problem.

    Raises:
        UserError: if all of them are equal.
    """
    train = values["train"]
    rows = train.total()
    if len({float(text) for text in train}) == 1:
        raise UserError(
            f"all {rows:,} training rows have the number {next(iter(train))}, so there is nothing "
            f"to learn; does data.columns.number name the right column?"
        )
    distinct = np.array([float(text) for text in train])
    numbers = np.repeat(distinct, list(train.values()))
    low, median, high = np.quantile(numbers, (0.25, 0.5, 0.75))
    far = numbers[np.abs(numbers - median) > FAR * (high - low)] if high > low else numbers[:0]
    if not len(far):
        return []
    return [
        f"{len(far):,} of {rows:,} training rows have a number far from all others, for example "
        f"{far[0]:g}: leave the cell blank if it means no value"
    ]


class NumberProcessor:
    """A tokenizer, and the mean and the standard deviation (`spread`) of the training rows."""

    file_name: ClassVar[str] = "processor.json"

    def __init__(self, text: TextProcessor, mean: float, spread: float) -> None:
        self.text = text
        self.mean = mean
        self.spread = spread
        self.vocab_size = text.vocab_size
        self.num_outputs = 1

    @classmethod
    def fit(cls, text: TextProcessor, numbers: list[float]) -> Self:
        """Fit to the training rows' numbers. The spread is 1 if all of them are equal."""
        mean = statistics.fmean(numbers)
        spread = math.sqrt(statistics.fmean((number - mean) ** 2 for number in numbers))
        # The spread of equal numbers is only the rounding error of their mean.
        return cls(text, mean, spread if spread > ROUNDING * abs(mean) else 1.0)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        settings = json.loads(content)
        tokenizer = json.dumps(settings["tokenizer"]).encode()
        return cls(TextProcessor.from_bytes(tokenizer), settings["mean"], settings["spread"])

    def to_bytes(self) -> bytes:
        tokenizer = json.loads(self.text.to_bytes())
        content = {"mean": self.mean, "spread": self.spread, "tokenizer": tokenizer}
        return json.dumps(content, ensure_ascii=False).encode()

    def standardised(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """The distance of each number from the mean in standard deviations, clipped so that its
        square fits float32."""
        scaled = (numbers - self.mean) / self.spread
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def restored(self, scaled: Any) -> Any:
        """The inverse of `standardised`: float64, in the unit of the data."""
        return np.asarray(scaled, dtype=np.float64) * self.spread + self.mean
