"""What the outputs of a head mean: labels go by their names, a number by its scale.

A head that was trained for the same labels in another order is the same head with its rows
exchanged. One for other labels is of no use.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from orchestrator.model.hf.layout import Settings, Weights

LOGITS = ("head.logits.weight", "head.logits.bias", "head.weight", "head.bias")
SPAN = ("start", "end")  # the labels of a head that finds a piece of a text
SHOWN = 3


@dataclass(frozen=True)
class Outputs:
    """What the outputs of a head stand for, as far as a task says."""

    labels: tuple[str, ...] | None = None  # one for each output
    scale: tuple[float, float] | None = None  # an output of 0 is the first, of 1 as much as both

    @classmethod
    def of(cls, task: Any, processor: Any) -> Self:
        """Those of a task and its processor: `labels`, or `mean` and `spread`, or a task's own
        `outputs`."""
        labels = getattr(processor, "labels", None) or getattr(task, "outputs", None)
        if not isinstance(labels, list | tuple):  # a user's processor may call anything so
            labels = None
        named = tuple(str(label) for label in labels) if labels else None
        mean, spread = getattr(processor, "mean", None), getattr(processor, "spread", None)
        if isinstance(mean, int | float) and isinstance(spread, int | float):
            return cls(named, (mean, spread))
        return cls(named)

    @property
    def is_span(self) -> bool:
        return self.labels == SPAN


def rows_by_name(outputs: Outputs, settings: Settings, count: int) -> list[int] | str:
    """The row of their head for each of our outputs; or why it is of no use, in words.

    `count` is how many rows their head has.
    """
    theirs = _their_labels(settings, count)
    if outputs.scale is not None:
        kind = settings.get("problem_type")
        if count == 1 and kind in (None, "regression"):
            return [0]
        return f"its head is for {count} labels" if count != 1 else f"its head is for {kind}"
    if outputs.labels is None:
        return list(range(count))
    ours = [_plain(label) for label in outputs.labels]
    if all(name == f"LABEL_{i}" for i, name in enumerate(theirs)):
        named = [name.removeprefix("LABEL_") for name in theirs]
        theirs = named if sorted(named) == sorted(ours) else theirs
    names = [_plain(name) for name in theirs]
    if sorted(names) != sorted(ours) or len(set(names)) < len(names):
        return f"its labels are {_listed(names)}, the data's {_listed(ours)}"
    return [names.index(label) for label in ours]


def exchanged(head: Weights, rows: list[int], outputs: Outputs) -> Weights:
    """The tensors of a head with its outputs in our order and scale."""
    found = {name: t[rows] if name in LOGITS else t for name, t in head.items()}
    if outputs.scale is None:
        return found
    mean, spread = outputs.scale
    return {name: _scaled(name, t, -mean / spread, 1 / spread) for name, t in found.items()}


def in_units(head: Weights, outputs: Outputs) -> Weights:
    """The tensors of a head whose output is the number itself, not how many `spread` it lies from
    `mean`."""
    if outputs.scale is None:
        return head
    return {name: _scaled(name, tensor, *outputs.scale) for name, tensor in head.items()}


def _scaled(name: str, tensor: Tensor, shift: float, factor: float) -> Tensor:
    if name not in LOGITS:
        return tensor
    scaled = tensor.double() * factor + (shift if name.endswith("bias") else 0.0)
    return scaled.to(tensor.dtype)


def _their_labels(settings: Settings, count: int) -> list[str]:
    said, by_name = settings.get("id2label"), settings.get("label2id")
    if not said and isinstance(by_name, dict):
        said = {str(number): name for name, number in by_name.items()}
    if isinstance(said, dict) and all(str(i) in said for i in range(count)):
        return [str(said[str(i)]) for i in range(count)]
    return [f"LABEL_{i}" for i in range(count)]


def _plain(label: str) -> str:
    return unicodedata.normalize("NFC", label).strip()


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(name[:40] for name in names[:SHOWN]) + (
        f" and {more} more" if more > 0 else ""
    )
