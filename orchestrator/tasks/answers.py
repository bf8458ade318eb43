"""The answers to a question, one or several: how they are read, kept with a row, and scored."""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.tasks.metrics import answer_metrics
from orchestrator.tasks.task import LeftOut

KEPT = "answers"  # what rows keep of them beside the arrays of tokens


def clean_answers(given: Any) -> list[str] | None:
    """The texts of a column of answers, blank ones dropped; None for a request, which has no such
    column.

    Raises:
        LeftOut: where there is none: SQuAD 2's unanswerable questions.
    """
    if given is None:
        return None
    texts = [given] if isinstance(given, str) else given
    found = [unicodedata.normalize("NFC", text).strip() for text in texts]
    found = list(dict.fromkeys(text for text in found if text))
    if not found:
        raise LeftOut("no answer, an unanswerable question")
    return found


def pack(answers: list[str] | None) -> str | None:
    """Answers as one value of a cleaned row."""
    return None if answers is None else json.dumps(answers, ensure_ascii=False)


def unpack(packed: str | None) -> list[str]:
    return [] if packed is None else json.loads(packed)


def keep_answers(rows: list[Row]) -> Arrays:
    return {KEPT: np.array([row["answer"] for row in rows], dtype=object)}


def score_answers(predictions: Iterable[str], kept: Arrays) -> dict[str, float]:
    """Exact match and F1 beside all accepted answers of each question."""
    return answer_metrics(predictions, [unpack(packed) for packed in kept[KEPT]])
