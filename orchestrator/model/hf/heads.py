"""What the outputs of a head mean: labels are matched by name, and a number by its scale.

If a head was trained for the same labels in another order, its rows are reordered. A head for
other labels is not used.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from orchestrator.model.hf.layout import Settings, Weights

LOGITS = ("head.logits.weight", "head.logits.bias", "head.weight", "head.bias")
SPAN = ("start", "end")  # the outputs of a head that predicts a span of tokens
SHOWN = 3


@dataclass(frozen=True)
class Outputs:
    """What a task says of its head's outputs."""

    labels: tuple[str, ...] | None = None  # one for each output
    scale: tuple[float, float] | None = None  # mean and standard deviation of a number

    @classmethod
    def of(cls, task: Any, processor: Any) -> Self:
        """From a processor's `labels`, or `mean` and `spread`, or from a task's `outputs`."""
        labels = getattr(processor, "labels", None) or getattr(task, "outputs", None)
        if not isinstance(labels, list | tuple):  # in a user's processor it can be anything
            labels = None
        named = tuple(str(label) for label in labels) if labels else None
        mean, spread = getattr(processor, "mean", None), getattr(processor, "spread", None)
        if isinstance(mean, int | float) and isinstance(spread, int | float):
            return cls(named, (mean, spread))
        return cls(named)

    @property
    def is_span(self) -> bool:
        """Whether the outputs are the start and the end of a span."""
        return self.labels == SPAN


def match_rows(outputs: Outputs, settings: Settings, count: int) -> list[int] | str:
    """For each output the row of a folder's head, or the reason why the head does not fit.

    `settings` is the folder's config.json, and `count` the number of rows of its head.
    """
    labels = _labels_of(settings, count)
    if outputs.scale is not None:
        kind = settings.get("problem_type")
        if count == 1 and kind in (None, "regression"):
            return [0]
        return f"its head is for {count} labels" if count != 1 else f"its head is for {kind}"
    if outputs.labels is None:
        return list(range(count))
    task_labels = [_normalised(label) for label in outputs.labels]
    if all(label == f"LABEL_{i}" for i, label in enumerate(labels)):
        numbers = [label.removeprefix("LABEL_") for label in labels]
        labels = numbers if sorted(numbers) == sorted(task_labels) else labels
    head_labels = [_normalised(label) for label in labels]
    is_ambiguous = len(set(head_labels)) < len(head_labels)
    if sorted(head_labels) != sorted(task_labels) or is_ambiguous:
        return f"its labels are {_listed(head_labels)}, the data's {_listed(task_labels)}"
    return [head_labels.index(label) for label in task_labels]


def reorder_outputs(head: Weights, rows: list[int], outputs: Outputs) -> Weights:
    """The weights of a folder's head with its outputs in the order of `rows`, and a number
    standardised."""
    reordered = {name: t[rows] if name in LOGITS else t for name, t in head.items()}
    if outputs.scale is None:
        return reordered
    mean, spread = outputs.scale
    return {name: _scaled(name, t, -mean / spread, 1 / spread) for name, t in reordered.items()}


def in_data_units(head: Weights, outputs: Outputs) -> Weights:
    """The weights of a head whose output is the number in the unit of the data."""
    if outputs.scale is None:
        return head
    return {name: _scaled(name, tensor, *outputs.scale) for name, tensor in head.items()}


def _scaled(name: str, tensor: Tensor, shift: float, factor: float) -> Tensor:
    """A head's tensor changed so that an output x becomes factor * x + shift."""
    if name not in LOGITS:
        return tensor
    scaled = tensor.double() * factor + (shift if name.endswith("bias") else 0.0)
    return scaled.to(tensor.dtype)


def _labels_of(settings: Settings, count: int) -> list[str]:
    """The labels of a config.json, by `id2label` or `label2id`; else LABEL_0, LABEL_1, …"""
    labels, numbers = settings.get("id2label"), settings.get("label2id")
    if not labels and isinstance(numbers, dict):
        labels = {str(number): label for label, number in numbers.items()}
    if isinstance(labels, dict) and all(str(i) in labels for i in range(count)):
        return [str(labels[str(i)]) for i in range(count)]
    return [f"LABEL_{i}" for i in range(count)]


def _normalised(label: str) -> str:
    return unicodedata.normalize("NFC", label).strip()


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(name[:40] for name in names[:SHOWN]) + (
        f" and {more} more" if more > 0 else ""
    )
