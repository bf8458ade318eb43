"""Checkpoints, failures, scale, cost."""

import heapq
import random
from typing import Any

import pytest

from orchestrator.job.job import Job
from orchestrator.plan.goodput import DAY, Checkpointing, checkpointing, mtbf
from orchestrator.plan.machines import A100, Machine, Machines
from orchestrator.plan.parameters import count
from orchestrator.plan.scale import Costs, Work, scaled
from orchestrator.plan.shapes import full
from orchestrator.plan.speed import Speed, step_flops


def simulate(saving: Checkpointing, between: float, interval: float, steps: int) -> float:
    """The share of useful time of a training with failures at random times."""
    chance, clock, done = random.Random(0), 0.0, 0
    failures = [chance.expovariate(1 / between)]
    while done < steps:
        end = clock + interval + saving.blocking
        if failures[0] < end:  # the interval is lost
            clock = heapq.heappop(failures) + saving.restart
            heapq.heappush(failures, clock + chance.expovariate(1 / between))
            continue
        clock, done = end, done + 1
    return done * interval / clock


def test_goodput_is_what_a_simulation_of_failures_shows() -> None:
    saving = Checkpointing(0, blocking=6.0, writing=0.0, restart=120.0)
    best = saving.interval(3 * 3600)
    measured = simulate(saving, 3 * 3600, best, 50_000)
    assert saving.goodput(3 * 3600) == pytest.approx(measured, abs=0.01)
    for other in (best / 4, best * 4):
        assert simulate(saving, 3 * 3600, other, 20_000) < measured


def test_goodput_of_llama_3_with_blocking_and_with_background_checkpoints() -> None:
    """16,384 GPUs in machines of 8; 419 interruptions in 54 days (arXiv 2407.21783)."""
    machines = 16_384 // 8
    between = mtbf(machines, failures=1000 * 419 / 54 / machines)
    assert between / 3600 == pytest.approx(54 * 24 / 419)
    slow = Checkpointing(0, blocking=148.8, writing=0.0, restart=300.0)
    fast = Checkpointing(0, blocking=6.3, writing=0.0, restart=300.0)
    assert slow.goodput(between) == pytest.approx(0.81, abs=0.01)
    assert fast.goodput(between) == pytest.approx(0.94, abs=0.01)


def test_no_interval_is_shorter_than_the_writing() -> None:
    saving = Checkpointing(0, blocking=0.001, writing=50.0, restart=1.0)
    assert saving.interval(100.0) == 50.0


def work(**sections: Any) -> Work:
    train = {"steps": 100, "global_batch_size": 64, "optimizer": "adamw"}
    content = {
        "name": "a",
        "task": "language_modelling",
        "data": {"source": "x"},
        "model": {"size": "base", "max_seq_len": 256},
        "cluster": {"gpus_per_worker": 1},
        **sections,
    }
    content["train"] = {**train, **sections.get("train", {})}
    job = Job.model_validate(content)
    parameters = count(job, None)
    return Work(
        job,
        parameters,
        sample_flops=step_flops(job, parameters, full(job, 1)),
        sample_tokens=256.0,
        speed=Speed(1e14, "assumed"),
        checkpoints=checkpointing(job, parameters),
    )


EIGHT = Machines("file", (Machine("gpus", 8, 96.0, 8.0, 1e12, A100, price=32.0),))


def test_one_machine_waits_less_than_two() -> None:
    the_work, costs = work(), Costs()
    one = scaled(the_work, EIGHT, costs, 8)
    two = scaled(the_work, EIGHT, costs, 16)
    alone = scaled(the_work, EIGHT, costs, 1)
    assert (one.machines, two.machines, alone.machines) == (1, 2, 1)
    assert alone.exposed == 0.0 and one.exposed < two.exposed
    size = 4 * the_work.parameters.total
    compute = 4 * the_work.sample_flops / 1e14
    expected = 2 * 15 / 16 * size / (10e9 / 8) - 2 / 3 * compute
    assert two.exposed == pytest.approx(expected)
    assert two.step == pytest.approx(compute + expected)
    faster = scaled(the_work, EIGHT, Costs(network=400.0), 16)
    assert faster.exposed < two.exposed and faster.tokens_a_second > two.tokens_a_second


def test_more_workers_than_samples_need_a_larger_batch_and_fewer_steps() -> None:
    many = scaled(work(), EIGHT, Costs(), 256)
    assert (many.batch, many.steps) == (256, 25)
    same = scaled(work(), EIGHT, Costs(), 64)
    assert (same.batch, same.steps) == (64, 100)


def test_more_machines_fail_more_often_and_cost_what_they_cost() -> None:
    few, many = (scaled(work(), EIGHT, Costs(), workers) for workers in (8, 64))
    assert few.mtbf == pytest.approx(8 * many.mtbf) and many.goodput < few.goodput
    assert few.mtbf == pytest.approx(1000 / 3.8 * DAY)
    assert few.cost == pytest.approx(32.0 * few.seconds / 3600)
    own = scaled(work(), EIGHT, Costs(price=1.0), 8)
    assert own.cost == pytest.approx(few.cost / 32.0)
    head = Machine("head", 1, 4.0, price=0.5)
    beside = scaled(work(), Machines("file", EIGHT.kinds, head), Costs(), 8)
    assert beside.cost == pytest.approx(32.5 * few.seconds / 3600)
    assert scaled(work(), Machines("file", (Machine("m", 1, 8.0, 8.0),)), Costs(), 8).cost is None


def test_a_time_budget_stays_and_its_steps_grow() -> None:
    the_work = work(train={"steps": None, "minutes": 10})
    one, eight = (scaled(the_work, EIGHT, Costs(network=400.0), n) for n in (1, 8))
    assert one.seconds == eight.seconds == 600.0
    assert 4 * one.steps < eight.steps <= 8 * one.steps + 8
