"""What a training's story tells of lost nodes, whichever ends first: the training, or the doubt."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.errors import StageError
from orchestrator.job.job import Job
from orchestrator.storage.events import EventLog, read_events
from orchestrator.storage.folder import Folder
from orchestrator.train import follower as follower_module
from orchestrator.train.follower import Follower
from orchestrator.train.supervisor import Event

LOST = Event("worker lost", {"ranks": [1]})


A_JOB = Job.model_validate(
    {"name": "a", "task": "language_modelling", "data": {"source": "python-stdlib"}}
)


class Silent:
    """A display that nobody looks at."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Nodes:
    """Ray's list of nodes: one that answers, and one that was killed."""

    def __init__(self, port: int) -> None:
        self.asked = 0
        self.known_after = 3  # so many questions
        free = socket.create_server(("127.0.0.1", 0))
        self.ports = {"alive": port, "killed": free.getsockname()[1]}
        free.close()
        self.killed = False

    def __call__(self) -> list[dict[str, Any]]:
        self.asked += self.killed
        dead = {"killed"} if self.killed and self.asked > self.known_after else set()
        return [
            {
                "NodeID": name,
                "Alive": name not in dead,
                "NodeManagerAddress": "127.0.0.1",
                "NodeManagerPort": port,
                "DeathReasonMessage": "it was killed" if name in dead else "",
            }
            for name, port in self.ports.items()
            if self.killed or name == "alive"
        ]


class Supervisor:
    """Has one message for who looks at it."""

    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_: Any) -> Any:
        messages, self.messages = self.messages, []
        return messages, [], False


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nodes = Nodes(server.getsockname()[1])
        monkeypatch.setattr(ray, "nodes", nodes)
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
        monkeypatch.setattr(ray, "get", lambda ref, timeout=None: ref)
        monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", dict)
        monkeypatch.setattr(follower_module, "POLL_SECONDS", 0.01)
        yield nodes


def story(tmp_path: Path, messages: list[Any]) -> tuple[list[str], float]:
    """What happens to a training that has ended when it is looked at, and the seconds it takes."""
    run = Folder(str(tmp_path))
    follower = Follower(A_JOB, run, EventLog(run), Silent())
    ray.nodes.killed = True
    started = time.monotonic()
    with contextlib.suppress(StageError):
        follower.follow(Supervisor(messages), "training")
    events = [e["event"] + e.get("cause", "") for e in read_events(run)]
    return events, time.monotonic() - started


@pytest.mark.parametrize("known_after", [0, 1, 20])
@pytest.mark.parametrize("end", [[], [StageError("it failed")]])
def test_a_node_that_was_lost_is_told_of_whenever_ray_knows(
    tmp_path: Path, nodes: Nodes, known_after: int, end: list[Any]
) -> None:
    nodes.known_after = known_after
    assert story(tmp_path, [LOST, *end])[0] == ["worker lost", "node lostit was killed"]


def test_where_no_worker_was_lost_nothing_is_waited_for(tmp_path: Path, nodes: Nodes) -> None:
    nodes.known_after = 1_000_000
    events, seconds = story(tmp_path, [])
    assert (events, nodes.asked) == ([], 0) and seconds < 1


def test_nodes_that_answer_are_not_waited_for(tmp_path: Path, nodes: Nodes) -> None:
    nodes.known_after = 1_000_000
    nodes.ports["killed"] = nodes.ports["alive"]
    events, seconds = story(tmp_path, [LOST])
    assert events == ["worker lost"] and seconds < 1


def test_a_node_of_which_ray_never_knows_is_waited_for_a_while(
    tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.known_after = 1_000_000
    monkeypatch.setattr(follower_module, "NODE_SECONDS", 0.3)
    events, seconds = story(tmp_path, [LOST])
    assert events == ["worker lost"] and 0.3 <= seconds < 2


class Notes(Silent):
    """A display that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_precision_and_samples_are_shown_and_written_down(tmp_path: Path, nodes: Nodes) -> None:
    run, display = Folder(str(tmp_path)), Notes()
    follower = Follower(A_JOB, run, EventLog(run), display)
    reason = "a step of 8 rows takes 0.41 s, in bf16 0.55 s"
    messages = [
        Event("precision", {"precision": "fp32", "reason": reason}),
        Event("sample", {"step": 30, "text": "the cat sat → on the mat"}),
    ]
    follower.follow(Supervisor(messages), "training")
    follower.close()
    assert display.notes == [f"precision fp32: {reason}", "step 30: the cat sat → on the mat"]
    assert [event["event"] for event in read_events(run)] == ["precision", "sample"]
    (board,) = (tmp_path / "tensorboard").iterdir()
    assert b"on the mat" in board.read_bytes()
