"""What simple methods reach, to tell what a Transformer adds to them."""

from collections import defaultdict

import numpy as np
import scipy.sparse
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import MultinomialNB

from orchestrator.data.arrays import Arrays
from orchestrator.tasks.metrics import WORD, Tokens, classification_metrics

TOKENS = 1 << 16  # told apart; of larger vocabularies some share a number
BINS = 1 << 20  # that pairs of neighbouring tokens are hashed into


def label_baselines(train: Arrays, test: Arrays, num_labels: int) -> dict[str, dict[str, float]]:
    """The commonest label, and naive Bayes on single tokens and pairs (Wang and Manning 2012).

    `train` and `test` hold `tokens`, `tokens_length` and `label`, -1 for one never seen.
    """
    known = train["label"] >= 0
    counts = np.bincount(train["label"][known], minlength=num_labels)
    shares = np.tile(counts / counts.sum(), (len(test["label"]), 1))
    found = {"commonest label": classification_metrics(shares, test["label"])}
    if len(np.unique(train["label"][known])) > 1:
        features = _features(train)[known]
        # Of a million bins that no row has, each would count as one word seen.
        seen = np.flatnonzero(features.getnnz(axis=0))
        model = MultinomialNB().fit(features[:, seen], train["label"][known])
        probabilities = np.zeros_like(shares)
        probabilities[:, model.classes_] = model.predict_proba(_features(test)[:, seen])
        found["naive Bayes"] = classification_metrics(probabilities, test["label"])
    return found


def number_baselines(train: Arrays, test: Arrays) -> dict[str, Tokens]:
    """What the mean says of each test row, and ridge regression on tokens and pairs of them."""
    mean = np.full(len(test["number"]), train["number"].mean(), dtype=np.float64)
    ridge = Ridge(alpha=1.0, solver="sparse_cg").fit(_features(train), train["number"])
    return {"mean": mean, "ridge regression": ridge.predict(_features(test))}


def _features(arrays: Arrays) -> scipy.sparse.csr_matrix:
    """Whether each token, and each pair of neighbours, is in a row: sparse (rows, features)."""
    tokens = arrays["tokens"].astype(np.int64) % TOKENS
    real = np.arange(tokens.shape[1]) < arrays["tokens_length"][:, None]
    pairs = TOKENS + (tokens[:, :-1] * (TOKENS + 1) + tokens[:, 1:]) % BINS
    there = np.concatenate([real, real[:, 1:]], axis=1)
    features = np.concatenate([tokens, pairs], axis=1)
    rows, columns = np.nonzero(there)
    shape = (len(tokens), TOKENS + BINS)
    counts = scipy.sparse.csr_matrix(
        (np.ones(len(rows)), (rows, features[rows, columns])), shape=shape
    )
    counts.data[:] = 1.0  # once or often is the same
    return counts


def dictionary(sources: list[str], targets: list[str], questions: list[str]) -> list[str]:
    """Each word by the one that IBM's first model has learned for it (Brown et al. 1993).

    Words are what stands between spaces, or single characters of scripts without any. A word that
    was never seen stays as it is.
    """
    pairs = [
        (_words(source), _words(target)) for source, target in zip(sources, targets, strict=True)
    ]
    chance: dict[tuple[str, str], float] = defaultdict(lambda: 1.0)
    for _ in range(5):  # of expectation and maximisation; more change little
        counts: dict[tuple[str, str], float] = defaultdict(float)
        totals: dict[str, float] = defaultdict(float)
        for source, target in pairs:
            for word in target:
                whole = sum(chance[other, word] for other in source)
                for other in source:
                    share = chance[other, word] / whole
                    counts[other, word] += share
                    totals[other] += share
        chance = defaultdict(float, {k: count / totals[k[0]] for k, count in counts.items()})
    best: dict[str, tuple[float, str]] = {}
    for (source_word, word), probability in chance.items():
        best[source_word] = max(best.get(source_word, (0.0, "")), (probability, word))
    spaced = " " in "".join(targets[:100])
    translated = [[best.get(word, (1.0, word))[1] for word in _words(text)] for text in questions]
    return [(" " if spaced else "").join(words) for words in translated]


def _words(text: str) -> list[str]:
    return WORD.findall(text)
