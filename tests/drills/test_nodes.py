"""Nodes that die, that are preempted with notice, and that leave and join."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from random import Random

import pytest
from ray.util.state import list_actors, list_nodes

from tests.drills.conftest import Make, Undisturbed
from tests.drills.trainings import Command, assert_clean, ending, processes_of
from tests.ray_head import BIN, Head, end_session, ray_head, ray_node

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.timeout(400)]


class Cluster:
    """A head without CPUs, and nodes of one CPU each, all on this machine."""

    def __init__(self, head: Head, stack: contextlib.ExitStack) -> None:
        self.head = head
        self._stack = stack
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def add_node(self) -> None:
        address = f"127.0.0.{len(self._nodes) + 2}"
        self._nodes[address] = self._stack.enter_context(ray_node(self.head, address, cpus=1))
        deadline = time.monotonic() + 60
        while address not in self.alive():
            assert time.monotonic() < deadline, f"{address} did not come up"
            time.sleep(0.2)

    def alive(self) -> dict[str, str]:
        """The id of each living node, by its address."""
        nodes = list_nodes(self.head.dashboard)
        return {node.node_ip: node.node_id for node in nodes if node.state == "ALIVE"}

    def workers(self) -> list[str]:
        """The addresses of the nodes that run workers of a training."""
        names = {node: address for address, node in self.alive().items()}
        actors = list_actors(self.head.dashboard, detail=True, limit=10_000)
        alive = [actor for actor in actors if actor.state == "ALIVE"]
        workers = [actor for actor in alive if actor.class_name.endswith("RayTrainWorker")]
        return sorted(names[actor.node_id] for actor in workers)

    def kill_raylet(self, address: str) -> None:
        for process in processes_of(self._nodes[address].pid):
            if process.name() == "raylet":
                os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(stack.enter_context(ray_head(cpus=0)), stack)


def test_a_dead_node_is_replaced_by_another(
    cluster: Cluster, make: Make, commands: list[Command], undisturbed: Undisturbed, chance: Random
) -> None:
    for _ in range(3):
        cluster.add_node()
    command = Command(make(), cluster.head.environment)
    commands.append(command)
    command.wait_for_checkpoint(chance.randrange(20, 60))
    killed = chance.choice(cluster.workers())
    started = time.monotonic()
    cluster.kill_raylet(killed)
    command.wait_for_event("resumed")
    seconds = time.monotonic() - started
    print(f"\nkill -9 of a raylet: {seconds:.1f} s until it goes on")
    assert seconds < 60
    assert killed not in cluster.workers()
    command.end()
    assert ending(command.folder) == undisturbed()
    assert len(command.events("worker lost")) == 1
    (lost,) = command.events("node lost")
    print(lost)
    assert lost["address"] == killed
    assert_clean(cluster.head, command.folder)


def test_a_head_is_lost_with_its_command_and_brought_back(
    make: Make, commands: list[Command], undisturbed: Undisturbed, chance: Random
) -> None:
    """The machine on which a submitted job's command runs is lost. Its run is free at once."""
    job = make()
    with ray_head(cpus=2) as head:
        commands.append(Command(job, head.environment))
        commands[0].wait_for_checkpoint(chance.randrange(20, 60))
        end_session(head.process)
        end_session(commands[0].process.pid)
    with ray_head(cpus=2) as head:
        started = time.monotonic()
        commands.append(Command(job, head.environment))
        commands[1].wait_for_event("resumed")
        seconds = time.monotonic() - started
        print(f"\na new head: {seconds:.1f} s until it goes on")
        assert seconds < 60
        commands[1].end()
    assert ending(commands[1].folder) == undisturbed()


def test_a_command_whose_head_is_lost_says_that_it_may_be_run_again(
    make: Make, commands: list[Command], chance: Random
) -> None:
    with ray_head(cpus=2) as head:
        commands.append(Command(make(train__steps=2000), head.environment))
        commands[0].wait_for_checkpoint(chance.randrange(20, 60))
        end_session(head.process)
        started = time.monotonic()
        output = commands[0].end(code=75)
        print(f"\na lost head: {time.monotonic() - started:.1f} s until the command ends")
    assert output.strip().splitlines()[-1].startswith("error: ")


def test_a_preempted_node_costs_no_step(
    cluster: Cluster, make: Make, commands: list[Command], undisturbed: Undisturbed, chance: Random
) -> None:
    for _ in range(3):
        cluster.add_node()
    job = make(cluster__max_failures=0, train__checkpoint_every=1000)  # no failure is allowed
    command = Command(job, cluster.head.environment)
    commands.append(command)
    command.wait_for_checkpoint(50)  # saved at a validation
    drained = chance.choice(cluster.workers())
    started = time.monotonic()
    drain = [str(BIN / "ray"), "drain-node", "--address", cluster.head.address]
    drain += ["--node-id", cluster.alive()[drained], "--deadline-remaining-seconds", "15"]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a drill"]
    subprocess.run(drain, check=True, capture_output=True)
    preempted = command.wait_for_event("preempted")
    resumed = command.wait_for_event("resumed")
    print(f"\nnotice: {time.monotonic() - started:.1f} s until it goes on elsewhere, {preempted}")
    assert time.monotonic() - started < 15 + 15
    saved = [event["step"] for event in command.events("checkpoint")]
    assert resumed["step"] in saved and resumed["step"] % 50  # saved because of the notice
    assert resumed["step"] >= preempted["step"]  # no step is repeated
    assert drained not in cluster.workers()
    command.end()
    assert ending(command.folder) == undisturbed()
    assert not command.events("worker lost")
    assert_clean(cluster.head, command.folder)


def test_a_training_shrinks_and_grows_with_its_cluster(
    cluster: Cluster, make: Make, commands: list[Command], undisturbed: Undisturbed, chance: Random
) -> None:
    for _ in range(2):
        cluster.add_node()
    changes = {"train__deterministic": True, "train__steps": 1000, "train__eval_every": 500}
    command = Command(make(**changes, cluster__workers=(1, 2)), cluster.head.environment)
    commands.append(command)
    assert command.wait_for_event("began")["workers"] == 2
    command.wait_for_checkpoint(chance.randrange(20, 60))
    cluster.kill_raylet(cluster.workers()[-1])
    assert command.wait_for_event("resumed")["workers"] == 1
    cluster.add_node()
    assert command.wait_for_event("resumed", count=2)["workers"] == 2
    command.end()
    assert ending(command.folder) == undisturbed(**changes)
    assert len(command.events("worker lost")) == 1
    assert not command.events("worker hangs")
    assert_clean(cluster.head, command.folder)
