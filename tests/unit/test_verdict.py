"""A worse version is found, and one that is as good is not called worse."""

import random

import pytest

from orchestrator.serve.samples import Arm, Sample, sketch_of
from orchestrator.serve.verdict import looks, problem, summary


def samples(
    arm: Arm, count: int, errors: float = 0.0, seconds: float = 0.2, seed: int = 0, **labels: float
) -> list[Sample]:
    draw = random.Random(f"{arm} {seed}")
    names, weights = list(labels) or ["a"], list(labels.values()) or [1.0]
    return [
        Sample(
            arm,
            draw.random() < errors,
            draw.lognormvariate(0, 0.5) * seconds,
            draw.choices(names, weights)[0],
        )
        for _ in range(count)
    ]


def test_looks_double_and_end_with_all() -> None:
    assert looks(100) == [5, 10, 20, 40, 80, 100]
    assert looks(3) == [3] and looks(5) == [5] and looks(10) == [5, 10]


def test_a_version_that_always_fails_is_found_at_the_first_look() -> None:
    found = problem(samples("new", 5, errors=1.0) + samples("old", 45))
    assert found == "fails 5 of 5 requests, the old one 0 of 45"


def test_errors_that_both_make_are_nobodys_fault() -> None:
    assert problem(samples("new", 100, errors=0.3) + samples("old", 900, errors=0.3)) == ""


def test_a_tenth_of_errors_is_found_among_a_hundred() -> None:
    assert "fails" in problem(samples("new", 100, errors=0.1) + samples("old", 900))


def test_a_slower_version_is_found() -> None:
    found = problem(samples("new", 50, seconds=0.8) + samples("old", 450, seconds=0.2))
    assert found.startswith("takes 0.") and "the old one 0.2" in found


def test_what_only_answers_one_label_is_found() -> None:
    found = problem(samples("new", 50, yes=1.0) + samples("old", 450, yes=0.5, no=0.5))
    assert "100% are now 'yes'" in found


@pytest.mark.parametrize("kinds", [2, 20, 77])
def test_versions_that_are_alike_are_not_called_worse(kinds: int) -> None:
    """False alarms of all six looks of 200 rollouts: fewer than one in a hundred."""
    labels = {f"label {n}": 1.0 for n in range(kinds)}
    alarms = 0
    for seed in range(200 if kinds == 2 else 40):
        new = samples("new", 100, errors=0.02, seed=seed, **labels)
        old = samples("old", 900, errors=0.02, seed=seed, **labels)
        alarms += any(problem(new[:n] + old[: 9 * n]) for n in looks(100))
    assert alarms <= 1


def test_without_answers_of_the_old_version_only_failures_count() -> None:
    assert problem([]) == "" and problem(samples("new", 50)) == ""
    assert "fails 50 of 50" in problem(samples("new", 50, errors=1.0))


def test_the_summary_names_both() -> None:
    both = [Sample("new", False, 0.2, "a", True), Sample("new", True, 1.0), Sample("old", False, 1)]
    assert summary(both) == {
        "new_answers": 2,
        "new_errors": 1,
        "new_median_seconds": 0.2,
        "old_answers": 1,
        "old_errors": 0,
        "old_median_seconds": 1,
        "agreement": 1.0,
    }


@pytest.mark.parametrize(
    ("kind", "body", "sketch"),
    [
        ("application/json", b'{"outputs": [{"label": "yes", "score": 0.7}]}', "label yes"),
        ("application/json", b'[[{"label": "no", "score": 0.7}]]', "label no"),
        ("application/json", b'{"outputs": [{"answer": "Paris"}]}', "2^5 bytes"),
        ("application/json", b"{", "no JSON"),
        ("text/event-stream; charset=utf-8", b"data: a\n\n", "text/event-stream 2^3 bytes"),
        (
            "application/json",
            b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 9}}',
            "stop 2^3 tokens",
        ),
    ],
)
def test_sketches_tell_answers_apart_and_keep_no_text(kind: str, body: bytes, sketch: str) -> None:
    assert sketch_of(kind, body) == sketch
