"""What the supervisor of a training's workers makes of what it hears, and of what it does not."""

import dataclasses
from typing import Any

import pytest

from orchestrator.errors import StageError
from orchestrator.train import supervisor as supervisor_module
from orchestrator.train.supervisor import Event, Figures, Heartbeat, Supervisor

HANG = 15.0
STEP_SECONDS = 0.2


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(supervisor_module, "time", found)
    return found


@pytest.fixture
def supervisor(clock: Clock) -> Supervisor:
    return Supervisor(max_failures=2, hang_seconds=HANG)


def heartbeat(rank: int, step: int = 0, seconds: float = 0.0) -> Heartbeat:
    return Heartbeat(rank, 100 + rank, f"node-{rank}", f"host-{rank}", step, seconds)


def poll(supervisor: Supervisor) -> tuple[list[Any], list[Heartbeat], bool]:
    """What the command gets, which has received all earlier messages."""
    return supervisor.poll(supervisor.received + len(supervisor.messages))


def news(supervisor: Supervisor) -> list[Any]:
    """The messages since the last look."""
    messages, *_ = supervisor.poll(supervisor.received)
    supervisor.poll(supervisor.received + len(messages))
    return messages


def events(supervisor: Supervisor) -> list[dict[str, Any]]:
    """Those that were told since the last look."""
    messages = news(supervisor)
    return [{"event": m.kind, **m.fields} for m in messages if isinstance(m, Event)]


def checkpoint(step: int) -> Event:
    return Event("checkpoint", {"step": step})


def test_messages_are_passed_on_once_in_their_order(supervisor: Supervisor) -> None:
    messages = [Figures(3, 10, {"loss": 1.0}), checkpoint(3), StageError("the disk is full")]
    for message in messages:
        supervisor.put(message)
    assert supervisor.poll(0)[0] == messages
    assert supervisor.poll(0)[0] == messages  # the first answer may have been lost
    assert supervisor.poll(2)[0] == messages[2:]
    supervisor.put(checkpoint(4))
    assert supervisor.poll(3)[0] == [checkpoint(4)]
    assert supervisor.poll(4)[0] == []


def test_figures_have_the_peak_memory_of_the_worker_that_takes_most(
    supervisor: Supervisor,
) -> None:
    generation = supervisor.begin_group(2)
    for rank in range(2):
        report = dataclasses.replace(heartbeat(rank), memory=10**9 * (rank + 1))
        supervisor.heartbeat(generation, report)
    supervisor.put(Figures(3, 10, {"loss": 1.0}))
    (figures,) = news(supervisor)
    assert figures.values == {"loss": 1.0, "peak memory GB": 2.0}


def test_what_is_asked_reaches_the_workers_and_is_not_taken_back(supervisor: Supervisor) -> None:
    generation = supervisor.begin_group(1)
    assert supervisor.heartbeat(generation, heartbeat(0)) == (0, [])
    supervisor.ask(2)
    supervisor.ask(1)
    assert supervisor.heartbeat(generation, heartbeat(0)) == (2, [])


def test_all_workers_hear_that_a_machine_of_theirs_will_be_taken_away(
    supervisor: Supervisor,
) -> None:
    generation = supervisor.begin_group(2)
    supervisor.heartbeat(generation, heartbeat(0))
    supervisor.heartbeat(generation, heartbeat(1))
    supervisor.drain({"node-1", "node-9"})  # on the latter there is no worker
    assert supervisor.heartbeat(generation, heartbeat(0)) == (0, ["node-1"])
    assert supervisor.heartbeat(generation, heartbeat(1)) == (0, ["node-1"])
    supervisor.workers_lost({0: "a machine is taken away"}, preempted=True)
    assert [event["hosts"] for event in events(supervisor)] == [["host-1"]]


def test_a_worker_that_falls_silent_hangs(supervisor: Supervisor, clock: Clock) -> None:
    generation, events_seen = supervisor.begin_group(2), []
    for second in range(20):
        clock.now = second
        supervisor.heartbeat(generation, heartbeat(0, step=second))
        if second < 3:
            supervisor.heartbeat(generation, heartbeat(1, step=second))
        _, hanging, at_work = poll(supervisor)
        assert at_work
        assert (hanging == [heartbeat(1, step=2)]) == (second == 18)  # found once
        events_seen += news(supervisor)
    (event,) = events_seen
    assert event.kind == "worker hangs"
    found = event.fields
    assert (found["rank"], found["host"], found["process"], found["step"]) == (1, "host-1", 101, 2)


def polled_after(seconds: float, supervisor: Supervisor, clock: Clock) -> list[int]:
    """The ranks that hang, as the command learns it after so many more seconds."""
    clock.now += seconds
    return sorted(heartbeat.rank for heartbeat in supervisor.poll(supervisor.received)[1])


def test_workers_are_not_silent_while_the_supervisor_does_not_run(
    supervisor: Supervisor, clock: Clock
) -> None:
    """It was stopped, say. When it goes on, the command's poll may come before the heartbeats."""
    generation = supervisor.begin_group(2)
    for rank in range(2):
        supervisor.heartbeat(generation, heartbeat(rank))
    assert polled_after(1, supervisor, clock) == []
    assert polled_after(10 * HANG, supervisor, clock) == []
    hanging = []
    for _ in range(15):
        supervisor.heartbeat(generation, heartbeat(0))
        hanging.append(polled_after(1, supervisor, clock))
    assert hanging == [[]] * 14 + [[1]]  # rank 1 was silent for a second before


def test_workers_on_other_nodes_that_all_fall_silent_are_out_of_reach(
    clock: Clock,
) -> None:
    """The network of the supervisor's node fails: killing the workers would not mend it."""
    supervisor = Supervisor(max_failures=2, hang_seconds=HANG, node="node-0")
    generation = supervisor.begin_group(3)
    for rank in range(3):
        supervisor.heartbeat(generation, heartbeat(rank))
    for _ in range(40):
        supervisor.heartbeat(generation, heartbeat(0))  # it is on the supervisor's own node
        assert polled_after(1, supervisor, clock) == []
    (event,) = events(supervisor)
    assert event["event"] == "workers out of reach"
    assert event["hosts"] == ["host-1", "host-2"]

    for _ in range(10):  # one comes back, and the other one stays silent
        for rank in range(2):
            supervisor.heartbeat(generation, heartbeat(rank))
        hanging = polled_after(1, supervisor, clock)
        if hanging:
            break
    assert hanging == [2]
    assert [event["event"] for event in events(supervisor)] == ["worker hangs"]


def test_workers_that_stay_out_of_reach_are_given_up(clock: Clock) -> None:
    supervisor = Supervisor(max_failures=2, hang_seconds=HANG, node="node-9")
    generation = supervisor.begin_group(2)
    for rank in range(2):
        supervisor.heartbeat(generation, heartbeat(rank))
    found = {second: polled_after(1, supervisor, clock) for second in range(1, 80)}
    assert {second: ranks for second, ranks in found.items() if ranks} == {76: [0, 1]}


def test_all_workers_of_the_supervisor_s_own_node_can_hang(clock: Clock) -> None:
    """There is no network between them."""
    supervisor = Supervisor(max_failures=2, hang_seconds=HANG, node="node-0")
    generation = supervisor.begin_group(2)
    for rank in range(2):
        supervisor.heartbeat(generation, dataclasses.replace(heartbeat(rank), node="node-0"))
    found = [polled_after(1, supervisor, clock) for _ in range(20)]
    assert [ranks for ranks in found if ranks] == [[0, 1]]


def test_a_worker_that_left_may_be_silent(supervisor: Supervisor, clock: Clock) -> None:
    generation = supervisor.begin_group(1)
    supervisor.heartbeat(generation, heartbeat(0))
    supervisor.worker_ended(generation, 0)
    clock.now = 2 * HANG
    assert poll(supervisor) == ([], [], False)


def test_lost_workers_are_told_of_with_step_host_and_cause(supervisor: Supervisor) -> None:
    generation = supervisor.begin_group(2)
    supervisor.heartbeat(generation, heartbeat(0, step=7))
    supervisor.heartbeat(generation, heartbeat(1, step=6))
    supervisor.worker_ended(generation, 1)  # on its way out, by an exception
    supervisor.workers_lost({1: "ActorDiedError: killed"}, preempted=False)
    (told,) = events(supervisor)
    assert told["event"] == "worker lost"
    assert (told["ranks"], told["hosts"], told["step"]) == ([1], ["host-1"], 7)
    assert told["cause"] == "rank 1: ActorDiedError: killed"


def test_workers_of_an_older_group_are_not_heard(supervisor: Supervisor, clock: Clock) -> None:
    """Those that outlive their group for a moment, or come back from behind a cut network."""
    old = supervisor.begin_group(2)
    supervisor.heartbeat(old, heartbeat(0))
    supervisor.workers_lost({1: "gone"}, preempted=False)
    supervisor.heartbeat(old, heartbeat(0))  # until Ray has ended it
    clock.now = 2 * HANG
    assert poll(supervisor)[1:] == ([], False)
    new = supervisor.begin_group(2)
    supervisor.heartbeat(new, heartbeat(1))
    supervisor.heartbeat(old, heartbeat(0))
    supervisor.worker_ended(old, 1)
    found = [seconds for seconds in range(20) if polled_after(1, supervisor, clock)]
    assert found == [15]  # heard of last 16 s ago


def test_failures_in_a_row_without_progress_end_the_training(supervisor: Supervisor) -> None:
    for _ in range(2):
        assert supervisor.may_train()
        supervisor.workers_lost({0: "killed"}, preempted=False)
    assert supervisor.may_train()
    supervisor.workers_lost({0: "killed again"}, preempted=False)
    poll(supervisor)
    assert not supervisor.may_train()
    assert not supervisor.may_train()  # each worker asks
    (error,) = news(supervisor)
    assert isinstance(error, StageError)
    assert "lost its workers 3 times" in str(error) and "killed again" in str(error)


def test_progress_refills_the_budget(supervisor: Supervisor) -> None:
    for step in range(10, 100, 10):
        supervisor.workers_lost({0: "killed"}, preempted=False)
        assert supervisor.may_train()
        supervisor.put(checkpoint(step))
    for _ in range(2):
        supervisor.workers_lost({0: "killed"}, preempted=False)
        supervisor.put(checkpoint(90))  # the one that was there already
        assert supervisor.may_train()
    supervisor.workers_lost({0: "killed"}, preempted=False)
    assert not supervisor.may_train()


def test_machines_taken_away_with_notice_are_no_failures(supervisor: Supervisor) -> None:
    for _ in range(5):
        supervisor.begin_group(2)
        supervisor.workers_lost({0: "drained"}, preempted=True)
        assert supervisor.may_train()
    told = [event["event"] for event in events(supervisor)]
    assert told == ["preempted"] * 5


def test_after_an_error_that_no_retry_mends_no_group_trains(supervisor: Supervisor) -> None:
    supervisor.put(StageError("the loss is no number"))
    assert not supervisor.may_train()
    supervisor.workers_lost({0: "its consequence"}, preempted=False)
    assert events(supervisor) == []


def train(
    supervisor: Supervisor, generation: int, times: dict[int, float], start: int, steps: int
) -> list[dict[str, Any]]:
    """Steps of which each worker computes so many times the usual; the stragglers told of."""
    for step in range(start, start + steps + 1):
        for rank, factor in times.items():
            seconds = (start + (step - start) * factor) * STEP_SECONDS
            supervisor.heartbeat(generation, heartbeat(rank, step, seconds))
    return [event for event in events(supervisor) if event["event"] == "straggler"]


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_a_worker_that_computes_far_longer_is_named_within_20_steps(
    supervisor: Supervisor, workers: int
) -> None:
    generation = supervisor.begin_group(workers)
    times = dict.fromkeys(range(workers), 1.0)
    assert train(supervisor, generation, times, 0, 100) == []
    (told,) = train(supervisor, generation, times | {1: 5.0}, 100, 60)  # once, not in each window
    assert (told["rank"], told["host"]) == (1, "host-1")
    assert told["step"] <= 120
    assert 2 < told["times_as_long"] < 6


def test_a_worker_that_lags_again_is_named_again(supervisor: Supervisor) -> None:
    generation = supervisor.begin_group(2)
    assert len(train(supervisor, generation, {0: 1.0, 1: 3.0}, 0, 40)) == 1
    supervisor.begin_group(2)
    generation = supervisor.generation
    assert train(supervisor, generation, {0: 1.0, 1: 1.0}, 0, 40) == []
    assert len(train(supervisor, generation, {0: 1.0, 1: 3.0}, 40, 40)) == 1


def test_steps_too_short_to_be_compared_name_nobody(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.STEP_SECONDS", 1e-4)
    generation = supervisor.begin_group(2)
    assert train(supervisor, generation, {0: 1.0, 1: 4.0}, 0, 200) == []


def test_one_worker_alone_is_no_straggler(supervisor: Supervisor) -> None:
    generation = supervisor.begin_group(1)
    assert train(supervisor, generation, {0: 9.0}, 0, 50) == []
