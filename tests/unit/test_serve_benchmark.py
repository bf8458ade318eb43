"""The figures of `benchmarks/serve.py`: what counts of a load, and rates at equal latency."""

import pytest

from benchmarks.load import Answer, Load, asks, summary
from benchmarks.serve import EQUAL_P95, GAPS, Measured, compare, judge, ratio_at_equal_p95


def at(rate: float, p95: float) -> Load:
    return Load(10 * rate, rate, [p95 / 2, p95, 2 * p95], answers=100)


def test_a_request_counts_by_its_part_of_the_measured_time() -> None:
    answers = [
        Answer(sent=-1.0, ended=1.0, tokens=20, text=""),  # half of it before
        Answer(sent=2.0, ended=3.0, tokens=30, text=""),
        Answer(sent=9.0, ended=13.0, tokens=40, text=""),  # a quarter of it within
        Answer(sent=-5.0, ended=-4.0, tokens=50, text=""),
    ]
    load = summary(answers, 0.0, 10.0)
    assert load.tokens_a_second == pytest.approx((10 + 30 + 10) / 10)
    assert load.requests_a_second == pytest.approx((0.5 + 1 + 0.25) / 10)
    assert load.answers == 3  # the latency of one that ended before says nothing
    assert load.latency[0] == 2.0


def test_gaps_are_between_the_pieces_of_one_stream() -> None:
    answers = [
        Answer(0.0, 4.0, 3, "abc", [1.0, 2.0, 3.0]),
        Answer(0.5, 4.0, 2, "de", [2.5, 3.5]),
    ]
    load = summary(answers, 0.0, 10.0)
    assert load.gaps == [1.0, 1.0, 1.0]
    assert load.first_token[0] == 1.5  # of 1 and 2 seconds


def test_the_rate_at_equal_latency_lies_between_the_measured_ones() -> None:
    loads = [at(30, 5.0), at(10, 1.0), at(20, 2.0)]
    assert ratio_at_equal_p95(loads, at(10, 3.5)) == pytest.approx(2.5)


def test_beyond_the_measured_rates_nothing_is_made_up() -> None:
    loads = [at(10, 1.0), at(20, 2.0)]
    assert ratio_at_equal_p95(loads, at(10, 9.0)) == 2.0  # the highest one, or more
    assert ratio_at_equal_p95(loads, at(10, 0.5)) == 0.0


def test_requests_depend_on_the_seed_alone() -> None:
    first, again, other = asks(1, 300), asks(1, 300), asks(2, 300)
    requests = [next(first) for _ in range(20)]
    assert requests == [next(again) for _ in range(20)]
    assert requests != [next(other) for _ in range(20)]
    assert all(16 <= len(each.prompt) <= 256 and min(each.prompt) > 0 for each in requests)
    assert all(16 <= each.max_tokens <= 64 for each in requests)


def test_a_goal_is_judged_by_the_median_of_its_ratio() -> None:
    judged = judge({EQUAL_P95: [1.0, 2.5, 2.0], GAPS: [1.9, 2.1, 2.2]})
    assert {name: (goal["figure"], goal["met"]) for name, goal in judged.items()} == {
        EQUAL_P95: (2.0, "yes"),
        GAPS: (2.1, "no"),
    }


def test_int8_is_compared_with_int8() -> None:
    def measured(rate: float) -> list[Measured]:
        return [Measured(8, dict.fromkeys((1, 8, 32), at(rate, 1.0)), {0.7: at(rate, 1.0)}, None)]

    sides = {"ours": 3, "ours int8": 6, "ctranslate2 float32": 2, "ctranslate2 int8": 12}
    ratios = compare({name: measured(rate) for name, rate in sides.items()})
    assert ratios["tokens/s, ours / ctranslate2 float32, 8 clients"] == [1.5]
    assert ratios["tokens/s, ours int8 / ctranslate2 int8, 8 clients"] == [0.5]
    assert ratios["tokens/s, ours int8 / ours, 32 clients"] == [2.0]
    assert judge(ratios)["tokens/s, ours int8 / ctranslate2 int8, 8 clients"]["met"] == "no"
