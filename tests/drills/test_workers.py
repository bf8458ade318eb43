"""Workers that are killed, stopped or slowed; and Ray Train's controller."""

import contextlib
import os
import signal
import threading
import time
from random import Random

import psutil
import pytest
from ray.util.state import list_actors

from tests.drills.conftest import Begin, Undisturbed
from tests.drills.trainings import ending
from tests.ray_head import Head

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.timeout(300)]


@pytest.mark.parametrize("ranks", [[1], [0], [0, 1]], ids=["rank 1", "rank 0", "both"])
def test_killed_workers_cost_one_checkpoint_interval_at_most(
    begin: Begin, undisturbed: Undisturbed, chance: Random, ranks: list[int]
) -> None:
    drill = begin()
    heartbeats = drill.wait_for_step(chance.randrange(25, 90))
    for rank in ranks:
        os.kill(heartbeats[rank].process, signal.SIGKILL)
    drill.wait_until_it_goes_on(f"kill -9 of {ranks}")
    drill.end()
    assert ending(drill.folder) == undisturbed()
    (lost,), (resumed,) = drill.events("worker lost"), drill.events("resumed")
    print(lost["cause"])
    assert "ActorDiedError" in lost["cause"] or "peer" in lost["cause"]
    assert resumed["step"] >= lost["step"] - 10


def test_a_stopped_worker_is_detected_and_replaced(
    begin: Begin, undisturbed: Undisturbed, chance: Random
) -> None:
    drill = begin()
    rank = chance.randrange(2)
    heartbeat = drill.wait_for_step(chance.randrange(25, 90))[rank]
    stopped = time.monotonic()
    os.kill(heartbeat.process, signal.SIGSTOP)
    hanging = drill.wait_for_event("worker hangs")
    seconds = time.monotonic() - stopped
    print(f"\nSIGSTOP of rank {rank}: detected after {seconds:.1f} s")
    assert seconds < 20
    assert (hanging["rank"], hanging["process"]) == (rank, heartbeat.process)
    drill.wait_until_it_goes_on("SIGSTOP, from when it was found", before=0)
    drill.end()
    assert ending(drill.folder) == undisturbed()
    assert not psutil.pid_exists(heartbeat.process)


def test_workers_outlive_a_pause_of_their_supervisor(
    begin: Begin, undisturbed: Undisturbed, head: Head, chance: Random
) -> None:
    """It is stopped for longer than a worker may be silent: no heartbeat is answered."""
    drill = begin(cluster__hang_seconds=8, train__steps=400)
    drill.wait_for_step(chance.randrange(25, 60))
    supervisor = controller(head)
    os.kill(supervisor, signal.SIGSTOP)
    time.sleep(14)  # the first heartbeat that is not answered is given up after 10 s
    os.kill(supervisor, signal.SIGCONT)
    drill.end()
    assert ending(drill.folder) == undisturbed(train__steps=400)
    assert not drill.events("worker hangs") and not drill.events("worker lost")
    assert not drill.events("controller lost")


def test_a_supervisor_that_never_answers_is_replaced(
    begin: Begin, undisturbed: Undisturbed, head: Head, chance: Random
) -> None:
    drill = begin()
    drill.wait_for_step(chance.randrange(25, 60))
    os.kill(controller(head), signal.SIGSTOP)
    seconds = drill.wait_until_it_goes_on("SIGSTOP of the controller")
    assert seconds < 110
    drill.end()
    assert ending(drill.folder) == undisturbed()
    assert len(drill.events("controller lost")) == 1


def controller(head: Head) -> int:
    """The process id of Ray Train's controller."""
    alive = list_actors(head.dashboard, filters=[("state", "=", "ALIVE")])
    (controller,) = [actor for actor in alive if actor.class_name == "TrainController"]
    return int(controller.pid)


def test_a_killed_controller_is_restarted(
    begin: Begin, undisturbed: Undisturbed, head: Head, chance: Random
) -> None:
    drill = begin()
    drill.wait_for_step(chance.randrange(25, 90))
    os.kill(controller(head), signal.SIGKILL)
    drill.wait_until_it_goes_on("kill -9 of the controller")
    drill.end()
    assert ending(drill.folder) == undisturbed()
    assert len(drill.events("controller lost")) == 1
    assert not drill.events("worker lost")


def test_the_snapshot_of_ray_train_is_not_needed(
    begin: Begin, undisturbed: Undisturbed, head: Head, chance: Random
) -> None:
    """The snapshot is truncated. Ray Train would not start with it, though all checkpoints are
    good."""
    drill = begin()
    drill.wait_for_step(chance.randrange(25, 90))
    assert drill.folder.local_path is not None
    (ray_run,) = (drill.folder.local_path / "ray").iterdir()
    snapshot = ray_run / "checkpoint_manager_snapshot.json"
    content = snapshot.read_text() if snapshot.exists() else '{"ray_version": "2.60.0", "check'
    snapshot.write_text(content[: len(content) // 2])
    os.kill(controller(head), signal.SIGKILL)
    drill.wait_until_it_goes_on("a torn snapshot of Ray's")
    drill.end()
    assert ending(drill.folder) == undisturbed()


def test_a_worker_with_a_fifth_of_its_core_is_named(
    begin: Begin, undisturbed: Undisturbed, chance: Random
) -> None:
    drill = begin()
    rank = chance.randrange(2)
    heartbeat = drill.wait_for_step(30)[rank]
    slowed, ended = threading.Event(), threading.Event()

    def hold_back() -> None:
        """Let the worker run for a fifth of each tenth of a second."""
        with contextlib.suppress(ProcessLookupError):
            while not ended.is_set():
                os.kill(heartbeat.process, signal.SIGSTOP)
                time.sleep(0.08)
                os.kill(heartbeat.process, signal.SIGCONT)
                slowed.set()
                time.sleep(0.02)

    holder = threading.Thread(target=hold_back)
    holder.start()
    slowed.wait()
    since = drill.heartbeats()[rank].step
    try:
        straggler = drill.wait_for_event("straggler")
    finally:
        ended.set()
        holder.join()
    print(f"\nheld back from step {since} on: {straggler}")
    assert (straggler["rank"], straggler["process"]) == (rank, heartbeat.process)
    assert straggler["step"] <= since + 20
    drill.end()
    assert ending(drill.folder) == undisturbed()
    assert not drill.events("worker lost")
