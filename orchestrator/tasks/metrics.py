"""How good a model is, and what a model without any learning would reach: pure functions."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"[\u3040-\u9fff]|[^\s\u3040-\u9fff]+")  # or a character, without spaces

Tokens = npt.NDArray[Any]
Probabilities = npt.NDArray[np.float64]


def language_metrics(nats: float, tokens: int, text_bytes: int) -> dict[str, float]:
    """Loss in nats per token, perplexity, and bits per byte, which tokenizers do not change."""
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(text_bytes, 1),
    }


def classification_metrics(probabilities: Any, labels: Any) -> dict[str, float]:
    """Accuracy, macro-F1 over the labels that occur, loss in nats and, of two labels, `roc_auc`.

    `probabilities` is (rows, labels), `labels` (rows,) with -1 for one that was never learned: a
    mistake, whatever is predicted. Where no label is known, there is no loss and no F1.
    """
    predictions, count = probabilities.argmax(1), probabilities.shape[1]
    known = labels >= 0
    if not known.any():
        return {"accuracy": 0.0}
    right = np.bincount(predictions[predictions == labels], minlength=count)
    counts = np.bincount(labels[known], minlength=count)
    f1 = 2 * right / np.maximum(counts + np.bincount(predictions, minlength=count), 1)
    chosen = np.take_along_axis(probabilities[known], labels[known, None].astype(np.int64), 1)
    found = {
        "accuracy": float((predictions == labels).mean()),
        "macro_f1": float(f1[counts > 0].mean()),
        "loss": float(-np.log(np.maximum(chosen, 1e-30)).mean()),
    }
    if count == 2:
        found["roc_auc"] = _area(probabilities[known, 1], labels[known])
    return found


def _area(scores: Any, labels: Any) -> float:
    """How often a row of label 1 has the higher score than one of label 0, an equal one half; 0.5
    where there are not both."""
    ones, zeros = int((labels == 1).sum()), int((labels == 0).sum())
    if not ones or not zeros:
        return 0.5
    above = float(_ranks(np.asarray(scores))[labels == 1].sum()) - ones * (ones + 1) / 2
    return above / (ones * zeros)


def answer_metrics(predictions: Iterable[str], answers: Iterable[list[str]]) -> dict[str, float]:
    """Exact match and F1 of the words in common, both means from 0 to 1. Of several answers to a
    question, the one that gives most counts, for each measure. Rajpurkar et al. 2016."""
    exact, f1 = [], []
    for prediction, accepted in zip(predictions, answers, strict=True):
        words = answer_words(prediction)
        pairs = [_exact_and_f1(words, answer_words(answer)) for answer in accepted]
        exact.append(max(pair[0] for pair in pairs))
        f1.append(max(pair[1] for pair in pairs))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def _exact_and_f1(words: list[str], answer: list[str]) -> tuple[float, float]:
    common = sum((Counter(words) & Counter(answer)).values())
    f1 = 2 * common / (len(words) + len(answer)) if words or answer else 1.0
    return float(words == answer), f1


def answer_words(text: str) -> list[str]:
    """What counts of an answer: no capitals, punctuation or English articles; of scripts without
    spaces each character, as XQuAD's and MLQA's scripts have it."""
    kept = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return [word for word in WORD.findall(kept) if word not in ("a", "an", "the")]


def regression_metrics(predictions: Any, targets: Any) -> dict[str, float]:
    """Errors in the numbers' own unit, and the rank correlation (Spearman), 0 where there is none.

    `predictions` and `targets` are (rows,).
    """
    errors = np.asarray(predictions, dtype=np.float64) - targets
    ranks = [_ranks(np.asarray(values)) for values in (predictions, targets)]
    varies = all(np.ptp(each) > 0 for each in ranks)
    correlation: Any = np.corrcoef(np.stack(ranks)) if varies else np.zeros((2, 2))
    return {
        "rmse": math.sqrt(np.mean(np.square(errors))),
        "mae": float(np.mean(np.abs(errors))),
        "spearman": float(correlation[0, 1]),
    }


def _ranks(values: Any) -> Probabilities:
    """The place of each among them all; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[which]


def ngram_nats(train: Tokens, test: Tokens, vocab_size: int) -> dict[str, float]:
    """Total nats of the test targets under n-grams counted on all of the training blocks.

    `train` and `test` are (rows, T + 1) blocks; a row's targets are all its tokens but the first,
    and no context reaches across rows: exactly what the model sees. Orders are interpolated with
    Witten-Bell weights (Chen and Goodman 1998, section 2.4), down to a uniform distribution.
    """
    train, test = train.astype(np.int64), test.astype(np.int64)
    targets = test[:, 1:]
    uniform = np.full(targets.shape, 1.0 / vocab_size)
    unigram = _witten_bell(
        np.zeros_like(train), train, np.zeros_like(targets), targets, uniform, vocab_size
    )
    bigram = _witten_bell(train[:, :-1], train[:, 1:], test[:, :-1], targets, unigram, vocab_size)
    trigram = bigram.copy()  # a row's first target has one token of context, not two
    trigram[:, 1:] = _witten_bell(
        train[:, :-2] * vocab_size + train[:, 1:-1],
        train[:, 2:],
        test[:, :-2] * vocab_size + test[:, 1:-1],
        test[:, 2:],
        bigram[:, 1:],
        vocab_size,
    )
    orders = {"unigram": unigram, "bigram": bigram, "trigram": trigram}
    return {name: float(-np.log(probabilities).sum()) for name, probabilities in orders.items()}


def _witten_bell(
    contexts: Tokens,
    words: Tokens,
    test_contexts: Tokens,
    test_words: Tokens,
    lower: Probabilities,
    vocab_size: int,
) -> Probabilities:
    """(count(context, word) + kinds(context) * lower) / (count(context) + kinds(context))."""
    pairs, pair_counts = np.unique(contexts * vocab_size + words, return_counts=True)
    seen, first, kinds = np.unique(pairs // vocab_size, return_index=True, return_counts=True)
    totals = np.add.reduceat(pair_counts, first)
    pair_count = _look_up(pairs, pair_counts, test_contexts * vocab_size + test_words)
    total = _look_up(seen, totals, test_contexts)
    kind = _look_up(seen, kinds, test_contexts)
    denominator = np.maximum(total + kind, 1)
    return np.where(total > 0, (pair_count + kind * lower) / denominator, lower)


def _look_up(keys: Tokens, values: Tokens, wanted: Tokens) -> Tokens:
    """`values` of the sorted `keys` that equal `wanted`, 0 for those that none equals."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
