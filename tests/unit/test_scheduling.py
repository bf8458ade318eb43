"""Who is next, where, and how much of each prompt."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.infer.scheduling import (
    FairQueue,
    Rate,
    choose_slot,
    common_prefix,
    prompt_shares,
)


def test_clients_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(item[0], item)
    assert [queue.pop() for _ in range(4)] == ["a1", "b1", "c1", "a2"]
    queue.push("c", "c2")
    assert [queue.pop() for _ in range(3)] == ["b2", "a3", "c2"]
    assert len(queue) == 0


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_each_client_is_served_in_its_order_and_nobody_waits_for_two_of_another(
    clients: list[str],
) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for i, client in enumerate(clients):
        queue.push(client, (client, i))
    served = [queue.pop() for _ in range(len(queue))]
    left = Counter(clients)
    for i, (client, _) in enumerate(served):
        left[client] -= 1
        others = {c for c, _ in served[i + 1 :]} - {client}
        if others and left[client]:
            assert served[i + 1][0] != client
    for client in set(clients):
        own = [item for item in served if item[0] == client]
        assert own == sorted(own)


def test_what_leaves_the_queue_is_not_served() -> None:
    queue: FairQueue[int] = FairQueue()
    for i in range(6):
        queue.push("ab"[i % 2], i)
    assert sorted(queue.remove(lambda i: i in (0, 2, 4, 5))) == [0, 2, 4, 5]
    assert len(queue) == 2 and [queue.pop(), queue.pop()] == [1, 3]


def test_the_longest_common_prefix_chooses_the_slot() -> None:
    assert choose_slot([(4, 50, 3), (2, 40, 30), (7, 90, 31)]) == (7, 31)
    assert choose_slot([(4, 50, 0), (2, 0, 0)]) == (4, 0), "else the least recently used one"
    # One common token is no reason to forget the 90 tokens that were used last.
    assert choose_slot([(4, 0, 0), (7, 90, 1)]) == (4, 0)
    assert choose_slot([(4, 0, 0), (7, 4, 3)]) == (7, 3), "little is lost"


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_a_common_prefix_is_common_and_the_longest(first: list[int], second: list[int]) -> None:
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or length == min(
        len(first), len(second)
    )


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 128))
def test_shares_of_prompts_fill_the_budget(remaining: list[int], budget: int) -> None:
    shares = prompt_shares(remaining, budget)
    assert all(0 <= share <= tokens for share, tokens in zip(shares, remaining, strict=True))
    assert sum(shares) <= budget
    assert sum(shares) == min(budget, sum(remaining)) or len(remaining) > 1
    assert shares[0] > 0, "the oldest advances in every step"


def test_a_short_prompt_shares_a_step_with_a_long_one() -> None:
    assert prompt_shares([300, 10], budget=32) == [16, 10]
    assert prompt_shares([10, 300], budget=32) == [10, 22]
    assert prompt_shares([300] * 10, budget=32) == [8, 8, 8, 8, 0, 0, 0, 0, 0, 0]


def test_the_time_to_try_again_follows_the_rate() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    now[0] = 10.0
    assert rate.retry_after() == 10.0, "nothing has ended in these 10 seconds"
    for _ in range(5):
        rate.count()
    assert rate.retry_after() == 2.0
    now[0] = 100.0
    assert rate.retry_after() == 30.0
    for _ in range(100):
        rate.count()
    assert rate.retry_after() == 1.0
