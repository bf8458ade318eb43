"""Texts with labels: a tokenizer, and the labels that the training rows hold."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from orchestrator.errors import UserError
from orchestrator.processors.text import TextProcessor

# In any case: blank cells, the gaps of pandas, JSON, SQL, its exports (\N), and Excel.
NO_LABEL = ("", "nan", "null", "<na>", "\\n", "#n/a")
MAYBE_NONE = ("none", "na", "n/a", "-", "?", "undefined", "nil", "nat")  # or a class: it is told
UNSEEN = "\u200b\u200e\u200f\u2060\ufeff"  # characters without width, as copies bring them
WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
SHOWN = 5  # labels that a message names
FEW = 5  # rows, of which it is chance what labels they have
TRUTH = {"true": "1", "false": "0"}


def label_text(label: str) -> str | None:
    """A label as it is learned, or None where it is none.

    Labels are normalised as texts are, and a whole number is written without decimals.
    """
    label = unicodedata.normalize("NFC", label).strip().strip(UNSEEN).strip()
    if label.casefold() in NO_LABEL:
        return None
    whole = WHOLE.fullmatch(label)
    label = whole[1] if whole else label
    return "0" if label == "-0" else label


def sense(label: str) -> str:
    """What labels of one class have in common: 1, 1.0 and true are one, in any case of letters."""
    return TRUTH.get(label.casefold(), label)


def look_at_labels(values: Mapping[Any, Counter[str]], processor: "LabelProcessor") -> list[str]:
    """What is unusual about the labels of each split, `train` among them: a line each.

    Raises:
        UserError: where they are all one class, or a split has none of training's.
    """
    train = values["train"]
    classes: dict[str, Counter[str]] = {}
    for label, count in train.items():
        classes.setdefault(sense(label), Counter())[label] = count
    rows = train.total()
    if len(classes) == 1:
        others = Counter({t: n for v in values.values() for t, n in v.items() if t not in train})
        raise UserError(
            f"all {rows:,} training rows have the label {next(iter(train))!r}: there is nothing to "
            f"learn; "
            + (
                f"others stand in validation and test alone, {_named(others)}: give more rows"
                if others
                else "does data.columns.label name the right column?"
            )
        )
    told = [
        f"the labels {_named(names)} are one class, called {processor.labels[number]!r}"
        for names in classes.values()
        if len(names) > 1 and (number := processor.number(next(iter(names)))) >= 0
    ]
    told += _doubtful(train)
    alone = Counter({next(iter(c)): 1 for c in classes.values() if c.total() == 1})
    many = ""
    if len(classes) > rows / 2:
        many = (
            f"{len(classes):,} labels on {rows:,} training rows, {len(alone):,} of them on one row "
            f"alone: does data.columns.label name classes?"
        )
        told.append(many)
    elif alone:
        told.append(f"{len(alone):,} labels stand on one training row alone: {_named(alone)}")
    for split in ("validation", "test"):
        rows = values[split].total()
        unknown = Counter({t: n for t, n in values[split].items() if processor.number(t) < 0})
        if unknown and unknown.total() == rows >= FEW:
            if many:
                raise UserError(many)
            raise UserError(
                f"not one of the {rows:,} {split} rows has a label that training has: theirs are "
                f"{_named(unknown)}, training's {_named(train)}: give data.{split}_source a file "
                f"with labels, or leave it out"
            )
        if unknown:
            told.append(
                f"{unknown.total():,} of {rows:,} {split} rows have a label that no training row "
                f"has, and count as mistakes: {_named(unknown)}"
            )
    return told


def _doubtful(train: Counter[str]) -> list[str]:
    """Classes that may be none, or one and the same."""
    told = []
    blank = Counter({t: n for t, n in train.items() if t.casefold() in MAYBE_NONE})
    if blank:
        told.append(
            f"{_named(blank)} counts as a class: where it stands for no label, leave it blank"
        )
    written: dict[str, Counter[str]] = {}
    for label, count in train.items():
        if sense(label) == label:  # else it is told as one class already
            written.setdefault(label.casefold(), Counter())[label] = count
    told += [
        f"the labels {_named(names)} are classes of their own, and differ in the case of letters"
        for names in written.values()
        if len(names) > 1
    ]
    return told


def _named(labels: Counter[str]) -> str:
    """The commonest of them, with counts where several rows have one."""
    shown = [
        f"{label[:40]!r}" + (f" ({count:,})" if count > 1 else "")
        for label, count in labels.most_common(SHOWN)
    ]
    more = len(labels) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


class LabelProcessor:
    """A tokenizer and names of labels, numbered in their order."""

    file_name: ClassVar[str] = "processor.json"

    def __init__(self, text: TextProcessor, labels: list[str]) -> None:
        self.text = text
        self.labels = labels
        self.vocab_size = text.vocab_size
        self.num_outputs = len(labels)
        self._numbers = {sense(label): number for number, label in enumerate(labels)}

    @classmethod
    def fit(
        cls,
        rows: Iterable[tuple[str, str]],
        fit_text: Callable[[Iterable[str]], TextProcessor],
    ) -> Self:
        """Learn from texts and their labels. Of several names of a class, the commonest is kept."""
        pairs = list(rows)
        counts = Counter(label for _, label in pairs)
        names: dict[str, str] = {}
        for label in sorted(counts, key=lambda label: (-counts[label], label)):
            names.setdefault(sense(label), label)
        return cls(fit_text(text for text, _ in pairs), sorted(names.values()))

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
        return self._numbers.get(sense(label), -1)
