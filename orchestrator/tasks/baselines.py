"""Baselines: the scores of simple methods, which show what a Transformer adds."""

from collections import defaultdict

import numpy as np
import scipy.sparse
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import MultinomialNB

from orchestrator.data.arrays import Arrays
from orchestrator.tasks.metrics import WORD, Tokens, classification_metrics

TOKENS = 1 << 16  # single-token features; in larger vocabularies some tokens share one
BINS = 1 << 20  # features that bigrams are hashed into


def label_baselines(train: Arrays, test: Arrays, num_labels: int) -> dict[str, dict[str, float]]:
    """Metrics of the commonest label, and of naive Bayes on unigrams and bigrams of tokens (Wang
    and Manning 2012).

    `train` and `test` hold `tokens` (rows, T), `tokens_length` and `label`, both (rows,); a label
    is -1 if no training row has it.
    """
    known = train["label"] >= 0
    counts = np.bincount(train["label"][known], minlength=num_labels)
    shares = np.tile(counts / counts.sum(), (len(test["label"]), 1))
    metrics = {"commonest label": classification_metrics(shares, test["label"])}
    if len(np.unique(train["label"][known])) > 1:
        features = _features(train)[known]
        # Smoothing would count each of the million unused bins as one occurrence.
        used = np.flatnonzero(features.getnnz(axis=0))
        model = MultinomialNB().fit(features[:, used], train["label"][known])
        probabilities = np.zeros_like(shares)
        probabilities[:, model.classes_] = model.predict_proba(_features(test)[:, used])
        metrics["naive Bayes"] = classification_metrics(probabilities, test["label"])
    return metrics


def number_baselines(train: Arrays, test: Arrays) -> dict[str, Tokens]:
    """Predictions for each test row, (rows,): the training mean, and ridge regression on unigrams
    and bigrams of tokens.

    `train` and `test` hold `tokens`, `tokens_length` and `number`; the predictions are in the unit
    of `number`.
    """
    mean = np.full(len(test["number"]), train["number"].mean(), dtype=np.float64)
    ridge = Ridge(alpha=1.0, solver="sparse_cg").fit(_features(train), train["number"])
    return {"mean": mean, "ridge regression": ridge.predict(_features(test))}


def _features(arrays: Arrays) -> scipy.sparse.csr_matrix:
    """Which unigrams and bigrams occur in each row: 0 or 1, sparse (rows, TOKENS + BINS)."""
    tokens = arrays["tokens"].astype(np.int64) % TOKENS
    real = np.arange(tokens.shape[1]) < arrays["tokens_length"][:, None]
    bigrams = TOKENS + (tokens[:, :-1] * (TOKENS + 1) + tokens[:, 1:]) % BINS
    is_real = np.concatenate([real, real[:, 1:]], axis=1)
    features = np.concatenate([tokens, bigrams], axis=1)
    rows, columns = np.nonzero(is_real)
    shape = (len(tokens), TOKENS + BINS)
    occurrences = scipy.sparse.csr_matrix(
        (np.ones(len(rows)), (rows, features[rows, columns])), shape=shape
    )
    occurrences.data[:] = 1.0  # repeated entries were summed
    return occurrences


def translate_by_word(sources: list[str], targets: list[str], texts: list[str]) -> list[str]:
    """Translate `texts` word by word, with the dictionary that IBM's model 1 learns from aligned
    `sources` and `targets` (Brown et al. 1993).

    Words are separated by spaces; in scripts without spaces each character is a word. A word that
    occurs in no source stays as it is.
    """
    sentences = [
        (_words(source), _words(target)) for source, target in zip(sources, targets, strict=True)
    ]
    # Of (source word, target word), the probability of the latter given the former.
    translation: dict[tuple[str, str], float] = defaultdict(lambda: 1.0)
    for _ in range(5):  # rounds of expectation maximisation; more change little
        counts: dict[tuple[str, str], float] = defaultdict(float)
        totals: dict[str, float] = defaultdict(float)
        for source, target in sentences:
            for word in target:
                total = sum(translation[other, word] for other in source)
                for other in source:
                    share = translation[other, word] / total
                    counts[other, word] += share
                    totals[other] += share
        translation = defaultdict(float, {k: count / totals[k[0]] for k, count in counts.items()})
    best: dict[str, tuple[float, str]] = {}
    for (source_word, word), probability in translation.items():
        best[source_word] = max(best.get(source_word, (0.0, "")), (probability, word))
    separator = " " if " " in "".join(targets[:100]) else ""
    return [
        separator.join(best.get(word, (1.0, word))[1] for word in _words(text)) for text in texts
    ]


def _words(text: str) -> list[str]:
    return WORD.findall(text)
