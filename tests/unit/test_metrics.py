"""Metrics by hand, and the n-gram baselines against a slow version of themselves."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from orchestrator.tasks.metrics import (
    answer_metrics,
    answer_words,
    classification_metrics,
    language_metrics,
    ngram_nats,
    regression_metrics,
)

VOCAB_SIZE = 5
ORDERS = ("unigram", "bigram", "trigram")


def blocks(rows: int, columns: int, seed: int, vocab_size: int = VOCAB_SIZE) -> np.ndarray:
    """Random tokens, the first of the vocabulary the more frequent."""
    random = np.random.default_rng(seed)
    return (vocab_size * random.random((rows, columns)) ** 2).astype(np.uint16)


class SlowNgrams:
    """Witten-Bell interpolation, a dictionary a context."""

    def __init__(self, train: Sequence[Sequence[int]], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.followers: dict[tuple[int, ...], Counter[int]] = {}
        for row in train:
            for i, token in enumerate(row):
                for length in range(min(i, 2) + 1):
                    context = tuple(row[i - length : i])
                    self.followers.setdefault(context, Counter())[token] += 1

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        followers = self.followers.get(context)
        if followers is None:
            return lower
        kinds = len(followers)
        return (followers[token] + kinds * lower) / (followers.total() + kinds)

    def nats(self, test: Sequence[Sequence[int]], length: int) -> float:
        return -sum(
            math.log(self.probability(row[i], tuple(row[max(i - length, 0) : i])))
            for row in test
            for i in range(1, len(row))
        )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (2, 4), (6, 9), (40, 7)])
def test_ngram_nats_equal_those_of_the_slow_version(rows: int, columns: int, seed: int) -> None:
    train, test = blocks(rows, columns, seed), blocks(3, columns, seed + 100)
    slow = SlowNgrams(train.tolist(), VOCAB_SIZE)
    expected = {name: slow.nats(test.tolist(), length) for length, name in enumerate(ORDERS)}
    assert ngram_nats(train, test, VOCAB_SIZE) == pytest.approx(expected, rel=1e-9)


def test_ngram_nats_hold_for_the_largest_vocabulary() -> None:
    train, test = blocks(4, 9, seed=0, vocab_size=65_536), blocks(2, 9, 0, vocab_size=65_536)
    train[:, 3:6] = test[0, 3:6] = [65_535, 65_534, 65_535]
    slow = SlowNgrams(train.tolist(), 65_536)
    expected = {name: slow.nats(test.tolist(), length) for length, name in enumerate(ORDERS)}
    assert ngram_nats(train, test, 65_536) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("context", [(0, 0), (0, 1), (4, 4), (3, 0)])
@pytest.mark.parametrize("order", ORDERS)
def test_the_probabilities_of_all_next_tokens_sum_to_one(
    order: str, context: tuple[int, int]
) -> None:
    train = blocks(5, 6, seed=0)
    train[train == 4] = 0  # token 4 is never seen

    def nats(*row: int) -> float:
        return ngram_nats(train, np.array([row]), VOCAB_SIZE)[order]

    chances = [math.exp(nats(*context) - nats(*context, token)) for token in range(VOCAB_SIZE)]
    assert sum(chances) == pytest.approx(1.0, rel=1e-9)
    assert min(chances) > 0


def test_longer_contexts_predict_a_repeating_text_better() -> None:
    text = np.resize([0, 1, 0, 2, 3], (20, 15))
    nats = ngram_nats(text, text[:2], VOCAB_SIZE)
    assert nats["unigram"] > 2 * nats["bigram"] > 4 * nats["trigram"] > 0


def test_language_metrics_of_a_fair_coin_a_byte() -> None:
    found = language_metrics(nats=6 * math.log(2), tokens=6, text_bytes=6)
    assert found == pytest.approx({"loss": math.log(2), "perplexity": 2.0, "bits_per_byte": 1.0})


def test_bits_per_byte_divide_by_bytes_and_the_loss_by_tokens() -> None:
    found = language_metrics(nats=12.0, tokens=4, text_bytes=10)
    assert found["loss"] == pytest.approx(3.0)
    assert found["perplexity"] == pytest.approx(20.085536923187668)
    assert found["bits_per_byte"] == pytest.approx(1.7312340490667562)  # 12 / (10 ln 2)


def test_language_metrics_of_hopeless_models_and_empty_texts_are_finite() -> None:
    found = language_metrics(nats=1e9, tokens=1, text_bytes=0)
    assert all(math.isfinite(value) for value in found.values())


# Answers and numbers


@pytest.mark.parametrize(
    ("said", "wanted", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("in Paris, France", "Paris", 0, 0.5),
        ("", "Paris", 0, 0),
        ("the", "a", 1, 1),  # nothing is left of either
        ("北京市", "北京", 0, 0.8),
        ("红 楼 梦", "红楼梦。", 1, 1),
    ],
)
def test_answers_are_compared_as_squad_does(
    said: str, wanted: str, exact: float, f1: float
) -> None:
    found = answer_metrics([said], [[wanted]])
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_words_that_come_twice_count_twice() -> None:
    assert answer_metrics(["no no no"], [["no yes"]])["f1"] == pytest.approx(2 * 1 / 5)
    assert answer_words("An Apple, a day") == ["apple", "day"]


def test_of_several_answers_the_best_one_counts_for_each_measure() -> None:
    answers = [["the red brick house", "house", "a house of red brick, red brick"]]
    assert answer_metrics(["House!"], answers) == {"exact_match": 1, "f1": 1}
    assert answer_metrics(["red brick"], answers) == {"exact_match": 0, "f1": 0.8}


def test_errors_of_numbers() -> None:
    found = regression_metrics([1.0, 2.0, 5.0], np.array([1.0, 4.0, 3.0]))
    assert found["rmse"] == pytest.approx(math.sqrt(8 / 3))
    assert found["mae"] == pytest.approx(4 / 3)
    assert found["spearman"] == pytest.approx(0.5)


def test_the_area_under_the_curve_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    ones = random.integers(0, 8, 60) / 8  # many are equal
    labels = random.integers(-1, 2, 60)
    probabilities = np.stack((1 - ones, ones), 1)
    known = labels >= 0
    found = classification_metrics(probabilities, labels)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels[known], ones[known]))
    assert classification_metrics(probabilities, np.ones(60, np.int64))["roc_auc"] == 0.5
    assert "roc_auc" not in classification_metrics(np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0]))


def test_the_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    chance = np.random.default_rng(0)
    said, wanted = chance.integers(0, 9, 50), chance.integers(0, 9, 50)
    expected = spearmanr(said, wanted).statistic
    assert regression_metrics(said, wanted)["spearman"] == pytest.approx(expected)
    assert regression_metrics(np.ones(5), np.arange(5))["spearman"] == 0
