"""Metrics of predictions, and the n-gram baseline of language modelling: pure functions."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

# A word between spaces or, in a script without spaces, a character.
WORD = re.compile(r"[\u3040-\u9fff]|[^\s\u3040-\u9fff]+")

Tokens = npt.NDArray[Any]
Probabilities = npt.NDArray[np.float64]


def language_metrics(nats: float, tokens: int, text_bytes: int) -> dict[str, float]:
    """Loss in nats per token, perplexity, and bits per byte, which do not depend on the tokenizer.

    `nats` is the total cross-entropy of `tokens` tokens, which stand for `text_bytes` bytes.
    """
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(text_bytes, 1),
    }


def classification_metrics(probabilities: Any, labels: Any) -> dict[str, float]:
    """Accuracy, macro-F1 over the labels that occur, loss in nats and, for two labels, `roc_auc`.

    `probabilities` is (rows, labels). `labels` is (rows,); -1 marks a label that is not in the
    training rows and counts as a mistake. If all are -1, only the accuracy, 0, is returned.
    """
    predicted, count = probabilities.argmax(1), probabilities.shape[1]
    known = labels >= 0
    if not known.any():
        return {"accuracy": 0.0}
    hits = np.bincount(predicted[predicted == labels], minlength=count)
    support = np.bincount(labels[known], minlength=count)
    f1 = 2 * hits / np.maximum(support + np.bincount(predicted, minlength=count), 1)
    likelihood = np.take_along_axis(probabilities[known], labels[known, None].astype(np.int64), 1)
    metrics = {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1[support > 0].mean()),
        "loss": float(-np.log(np.maximum(likelihood, 1e-30)).mean()),
    }
    if count == 2:
        metrics["roc_auc"] = _roc_auc(probabilities[known, 1], labels[known])
    return metrics


def _roc_auc(scores: Any, labels: Any) -> float:
    """The area under the ROC curve: the probability that a row of label 1 scores higher than one
    of label 0, where a tie counts half. 0.5 if only one label occurs."""
    ones, zeros = int((labels == 1).sum()), int((labels == 0).sum())
    if not ones or not zeros:
        return 0.5
    above = float(_ranks(np.asarray(scores))[labels == 1].sum()) - ones * (ones + 1) / 2
    return above / (ones * zeros)


def answer_metrics(predictions: Iterable[str], answers: Iterable[list[str]]) -> dict[str, float]:
    """Exact match and word F1, both means from 0 to 1 (Rajpurkar et al. 2016).

    If a question has several accepted answers, each metric takes the one with the highest score.
    """
    exact, f1 = [], []
    for prediction, accepted in zip(predictions, answers, strict=True):
        words = answer_words(prediction)
        scores = [_exact_and_f1(words, answer_words(answer)) for answer in accepted]
        exact.append(max(score[0] for score in scores))
        f1.append(max(score[1] for score in scores))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def _exact_and_f1(words: list[str], answer: list[str]) -> tuple[float, float]:
    common = sum((Counter(words) & Counter(answer)).values())
    f1 = 2 * common / (len(words) + len(answer)) if words or answer else 1.0
    return float(words == answer), f1


def answer_words(text: str) -> list[str]:
    """The words of an answer that are compared: in lower case, without punctuation and English
    articles. In a script without spaces each character is a word, as in the evaluation scripts of
    XQuAD and MLQA."""
    kept = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return [word for word in WORD.findall(kept) if word not in ("a", "an", "the")]


def regression_metrics(predictions: Any, targets: Any) -> dict[str, float]:
    """RMSE and MAE in the unit of the targets, and Spearman's rank correlation, which is 0 if all
    predictions or all targets are equal.

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
    """The rank of each value, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def ngram_nats(train: Tokens, test: Tokens, vocab_size: int) -> dict[str, float]:
    """Total cross-entropy in nats of the test targets, for the n-grams of order 1, 2 and 3 that
    are counted on the training blocks.

    `train` and `test` are (rows, T + 1) blocks. A row's targets are its tokens but the first, and
    no context reaches across rows, as for the model. The orders are interpolated with Witten-Bell
    weights (Chen and Goodman 1998, section 2.4), down to a uniform distribution.
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
    """(count(context, word) + types(context) * lower) / (count(context) + types(context)), where
    types(context) counts the distinct words after the context.

    Contexts, words and `lower`, the probabilities of the lower order, have the same shape. A test
    context that does not occur in training takes `lower`.
    """
    ngrams, ngram_counts = np.unique(contexts * vocab_size + words, return_counts=True)
    known, first, types = np.unique(ngrams // vocab_size, return_index=True, return_counts=True)
    context_counts = np.add.reduceat(ngram_counts, first)
    count = _look_up(ngrams, ngram_counts, test_contexts * vocab_size + test_words)
    context_count = _look_up(known, context_counts, test_contexts)
    type_count = _look_up(known, types, test_contexts)
    denominator = np.maximum(context_count + type_count, 1)
    return np.where(context_count > 0, (count + type_count * lower) / denominator, lower)


def _look_up(keys: Tokens, values: Tokens, queries: Tokens) -> Tokens:
    """For each query, the value of the key that equals it, or 0 if there is no such key. `keys`
    are sorted."""
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, values[index], 0)
