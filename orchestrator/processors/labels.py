"""The processor of texts with labels: a tokenizer, and the labels of the training rows."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from orchestrator.errors import UserError
from orchestrator.processors.text import TextProcessor

# Missing labels, in any case: blank cells, and the values of pandas, JSON, SQL and its exports
# (\N), and Excel.
MISSING = ("", "nan", "null", "<na>", "\\n", "#n/a")
MAYBE_MISSING = ("none", "na", "n/a", "-", "?", "undefined", "nil", "nat")  # or class names
INVISIBLE = "\u200b\u200e\u200f\u2060\ufeff"  # characters without width, left from copying
WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
SHOWN = 5  # labels that a message names
FEW = 5  # rows of a split; with fewer, unknown labels may be chance
TRUTH = {"true": "1", "false": "0"}


def label_text(label: str) -> str | None:
    """The label as training uses it, or None if it is missing.

    Labels are normalised like texts, and a whole number is written without decimals.
    """
    label = unicodedata.normalize("NFC", label).strip().strip(INVISIBLE).strip()
    if label.casefold() in MISSING:
        return None
    whole = WHOLE_NUMBER.fullmatch(label)
    label = whole[1] if whole else label
    return "0" if label == "-0" else label


def class_key(label: str) -> str:
    """The key that all spellings of one class share: "1" for 1 and for true in any case."""
    return TRUTH.get(label.casefold(), label)


def check_labels(values: Mapping[Any, Counter[str]], processor: "LabelProcessor") -> list[str]:
    """Check the labels of each split, with their counts; returns one notice for each problem.

    Raises:
        UserError: if all training rows have one class, or if no row of another split has a label
            that training has.
    """
    train = values["train"]
    classes: dict[str, Counter[str]] = {}
    for label, count in train.items():
        classes.setdefault(class_key(label), Counter())[label] = count
    _check_several(classes, values)
    rows = train.total()
    notices = [
        f"the labels {_named(names)} are one class, called {processor.labels[number]!r}"
        for names in classes.values()
        if len(names) > 1 and (number := processor.number(next(iter(names)))) >= 0
    ]
    notices += _ambiguous(train)
    single = Counter({next(iter(c)): 1 for c in classes.values() if c.total() == 1})
    too_many = ""
    if len(classes) > rows / 2:
        too_many = (
            f"{len(classes):,} labels on {rows:,} training rows, {len(single):,} of them on a "
            f"single row: does data.columns.label name classes?"
        )
        notices.append(too_many)
    elif single:
        notices.append(f"{len(single):,} labels have a single training row: {_named(single)}")
    for split in ("validation", "test"):
        rows = values[split].total()
        unknown = Counter({t: n for t, n in values[split].items() if processor.number(t) < 0})
        if unknown and unknown.total() == rows >= FEW:
            raise UserError(
                too_many
                or f"not one of the {rows:,} {split} rows has a label of the training rows: they "
                f"have {_named(unknown)}, training has {_named(train)}: set data.{split}_source to "
                f"a file with these labels, or leave it out"
            )
        if unknown:
            notices.append(
                f"{unknown.total():,} of {rows:,} {split} rows have a label that no training row "
                f"has, and count as mistakes: {_named(unknown)}"
            )
    return notices


def _check_several(classes: Mapping[str, Counter[str]], values: Mapping[Any, Counter[str]]) -> None:
    """Raises UserError if the training rows have a single class."""
    if len(classes) != 1:
        return
    train = values["train"]
    others = Counter({t: n for v in values.values() for t, n in v.items() if t not in train})
    advice = (
        f"only validation and test have others, {_named(others)}: add rows"
        if others
        else "does data.columns.label name the right column?"
    )
    raise UserError(
        f"all {train.total():,} training rows have the label {next(iter(train))!r}, so there is "
        f"nothing to learn; {advice}"
    )


def _ambiguous(train: Counter[str]) -> list[str]:
    """Notices about labels that may stand for a missing label, or for the same class."""
    notices = []
    maybe_missing = Counter({t: n for t, n in train.items() if t.casefold() in MAYBE_MISSING})
    if maybe_missing:
        notices.append(
            f"{_named(maybe_missing)} counts as a class: leave the cell blank if it means no label"
        )
    spellings: dict[str, Counter[str]] = {}
    for label, count in train.items():
        if class_key(label) == label:  # else a notice already says that they are one class
            spellings.setdefault(label.casefold(), Counter())[label] = count
    notices += [
        f"the labels {_named(names)} differ only in upper and lower case, and are separate classes"
        for names in spellings.values()
        if len(names) > 1
    ]
    return notices


def _named(labels: Counter[str]) -> str:
    """The most frequent labels, quoted, with their counts if these are above 1."""
    shown = [
        f"{label[:40]!r}" + (f" ({count:,})" if count > 1 else "")
        for label, count in labels.most_common(SHOWN)
    ]
    more = len(labels) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


class LabelProcessor:
    """A tokenizer, and the label of each class in the order of the class numbers."""

    file_name: ClassVar[str] = "processor.json"

    def __init__(self, text: TextProcessor, labels: list[str]) -> None:
        self.text = text
        self.labels = labels
        self.vocab_size = text.vocab_size
        self.num_outputs = len(labels)
        self._numbers = {class_key(label): number for number, label in enumerate(labels)}

    @classmethod
    def fit(
        cls,
        rows: Iterable[tuple[str, str]],
        fit_text: Callable[[Iterable[str]], TextProcessor],
    ) -> Self:
        """Fit to rows of (text, label). `fit_text` makes the tokenizer from the texts. If a class
        has several spellings, it takes the most frequent one."""
        sample = list(rows)
        counts = Counter(label for _, label in sample)
        names: dict[str, str] = {}
        for label in sorted(counts, key=lambda label: (-counts[label], label)):
            names.setdefault(class_key(label), label)
        return cls(fit_text(text for text, _ in sample), sorted(names.values()))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        settings = json.loads(content)
        tokenizer = json.dumps(settings["tokenizer"]).encode()
        return cls(TextProcessor.from_bytes(tokenizer), settings["labels"])

    def to_bytes(self) -> bytes:
        content = {"labels": self.labels, "tokenizer": json.loads(self.text.to_bytes())}
        return json.dumps(content, ensure_ascii=False).encode()

    def number(self, label: str) -> int:
        """The class number of a label; -1 if no training row has the label."""
        return self._numbers.get(class_key(label), -1)
