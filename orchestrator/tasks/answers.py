"""The accepted answers to a question: cleaned, stored with a row, and scored."""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.tasks.metrics import answer_metrics
from orchestrator.tasks.task import LeftOut

ANSWERS = "answers"  # the column of `Task.keep` that holds a row's accepted answers as JSON


def clean_answers(value: Any) -> list[str] | None:
    """The distinct, non-blank texts of an `answer` column (a text or a list of texts), in order.

    Returns None for a request to the endpoint, which has no answer.

    Raises:
        LeftOut: if no answer is left, as for SQuAD 2's unanswerable questions.
    """
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    stripped = [unicodedata.normalize("NFC", text).strip() for text in texts]
    answers = list(dict.fromkeys(text for text in stripped if text))
    if not answers:
        raise LeftOut("no answer, an unanswerable question")
    return answers


def pack(answers: list[str] | None) -> str | None:
    """Answers as one value of a cleaned row: a JSON list."""
    return None if answers is None else json.dumps(answers, ensure_ascii=False)


def unpack(packed: str | None) -> list[str]:
    """The answers that `pack` stored; an empty list for a request."""
    return [] if packed is None else json.loads(packed)


def keep_answers(rows: list[Row]) -> Arrays:
    """The packed answers of cleaned rows, for `Task.keep`."""
    return {ANSWERS: np.array([row["answer"] for row in rows], dtype=object)}


def score_answers(predictions: Iterable[str], kept: Arrays) -> dict[str, float]:
    """Exact match and F1 of each prediction against all accepted answers to its question.

    `kept` holds the column that `keep_answers` made.
    """
    return answer_metrics(predictions, [unpack(packed) for packed in kept[ANSWERS]])
