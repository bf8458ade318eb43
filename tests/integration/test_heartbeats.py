"""Workers whose calls of the supervisor are lost on the way, by Ray's own injection of faults."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.job.job import Job
from orchestrator.learn.world import World
from orchestrator.train.supervisor import Event, Supervisor
from orchestrator.train.worker import SupervisorLink
from tests.integration.conftest import tiny_job

LOST = 8  # calls; each takes about two seconds to fail
HANG = 8.0


@ray.remote(num_cpus=0)
class Worker:
    """Reports for a while, without training."""

    def work(self, supervisor: Any, job: Job, seconds: float) -> float:
        """Returns the seconds until the last message had arrived."""
        with SupervisorLink(supervisor, World(), job) as link:
            started, sent = time.monotonic(), 0
            while time.monotonic() - started < seconds:
                link.event("tick", number=sent)
                sent += 1
                time.sleep(1)
        return time.monotonic() - started

    def beats_after_the_end(self, supervisor: Any, job: Job) -> bool:
        """Whether the heartbeat thread survives its supervisor for five seconds."""
        with SupervisorLink(supervisor, World(), job):
            ray.kill(supervisor)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                if not any(thread.name == "heartbeats" for thread in threading.enumerate()):
                    return False
                time.sleep(0.1)
        return True


def losing(count: int) -> dict[str, Any]:
    """A runtime environment in which so many calls of a process, or the answers to them, are lost.

    Every second one is, from the first one on.
    """
    fault = {"num_failures": count, "req_failure_prob": 25}
    fault |= {"resp_failure_prob": 25, "in_flight_failure_prob": 0}
    methods = {"CoreWorkerService.grpc_client.PushTask": fault}
    return {"env_vars": {"RAY_testing_rpc_failure": json.dumps(methods)}}


@pytest.fixture
def supervisor(connected: Any) -> Any:
    return ray.remote(num_cpus=0)(Supervisor).remote(0, HANG)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.model_validate(tiny_job(tmp_path, cluster__spares=False))


def test_a_worker_behind_a_failing_network_is_heard_again_and_loses_no_message(
    supervisor: Any, job: Job
) -> None:
    worker = Worker.options(runtime_env=losing(LOST)).remote()
    work = worker.work.remote(supervisor, job, 25)
    received, seen, ticks = 0, 0, []
    while not ray.wait([work], timeout=0.5)[0]:
        messages, hanging, runs = ray.get(supervisor.poll.remote(received))
        received += len(messages)
        events = [each for each in messages if isinstance(each, Event)]
        ticks += [event.fields["number"] for event in events if event.kind == "tick"]
        assert hanging == []
        seen += runs
    assert ray.get(work) < 25 + 20
    assert seen > 10  # polls in which the worker was known to run
    assert {*ticks} == set(range(max(ticks) + 1)) and max(ticks) > 10  # none is lost
    assert ray.get(supervisor.poll.remote(received))[2] is False  # it said that it had ended


def test_heartbeats_end_with_the_supervisor(supervisor: Any, job: Job) -> None:
    assert not ray.get(Worker.remote().beats_after_the_end.remote(supervisor, job))
