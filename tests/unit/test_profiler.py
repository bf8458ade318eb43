"""The profiler switch: what a profiled training leaves, and that it trains the same weights."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.job.job import Job
from orchestrator.learn import operators
from orchestrator.learn.fit import fit
from orchestrator.learn.operators import operators_of
from orchestrator.learn.profiler import WARM_UP_STEPS, StepProfiler
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.train.worker import SupervisorLink
from tests.unit.toy import (
    Listener,
    final_weights,
    prepare_counting,
    saved_in,
    toy_config,
    toy_task,
    train,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


class Profiled(Listener):
    """A listener that profiles, as the first worker of a training does."""

    def __init__(self, steps: int, folder: Folder) -> None:
        super().__init__()
        self.profiler = StepProfiler(steps, folder, self.event)

    def stepped(self, step: int, seconds: float) -> None:
        super().stepped(step, seconds)
        self.profiler.step_done(step)


def profiled(prepared: PreparedData, path: Path, steps: int, total_steps: int = 12) -> Profiled:
    listener = Profiled(steps, Folder(str(path / "profile")))
    checkpoints = saved_in(path)
    config = toy_config(steps=total_steps)
    fit(toy_task(), prepared, config, World(), listener, checkpoints)
    checkpoints.finish()
    listener.profiler.close()
    return listener


def recorded_steps(trace: str) -> int:
    events = json.loads(gzip.decompress(Path(trace).read_bytes()))["traceEvents"]
    return sum(event.get("name") == "training step" for event in events)


def test_a_profile_has_a_trace_and_a_table_and_changes_no_weight(
    prepared: PreparedData, tmp_path: Path
) -> None:
    listener = profiled(prepared, tmp_path / "profiled", steps=3)
    (event,) = listener.heard("profiled")
    assert event["steps"] == recorded_steps(event["trace"]) == 3
    assert event["operators"].endswith(f"step-{WARM_UP_STEPS + 3:06d}.txt")
    table = Path(event["operators"]).read_text()
    assert table.startswith("CPU: ") and "aten::addmm" in table
    train(prepared, tmp_path / "plain", toy_config())
    assert torch.equal(final_weights(tmp_path / "profiled"), final_weights(tmp_path / "plain"))


def test_a_training_that_ends_early_leaves_the_steps_recorded_so_far(
    prepared: PreparedData, tmp_path: Path
) -> None:
    listener = profiled(prepared, tmp_path, steps=20, total_steps=WARM_UP_STEPS + 2)
    (event,) = listener.heard("profiled")
    assert event["steps"] == recorded_steps(event["trace"]) - 1 == 2  # one more had begun


def test_a_training_that_ends_within_the_warm_up_says_so(
    prepared: PreparedData, tmp_path: Path
) -> None:
    listener = profiled(prepared, tmp_path, steps=3, total_steps=WARM_UP_STEPS - 1)
    assert "warm-up" in listener.heard("not profiled")[0]["reason"]


def test_storage_that_takes_no_profile_does_not_end_the_training(
    prepared: PreparedData, tmp_path: Path
) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    listener = profiled(prepared, tmp_path, steps=2)
    assert listener.heard("not profiled") and listener.steps[-1] == 12


def test_no_step_that_fixes_the_length_of_a_training_is_recorded() -> None:
    job: dict[str, Any] = {
        "name": "a",
        "task": "language_modelling",
        "data": {"source": "python-stdlib"},
        "train": {"minutes": 1},
    }
    supervisor: Any = SimpleNamespace(put=SimpleNamespace(remote=lambda message: None))
    line = SupervisorLink(supervisor, World(), Job.model_validate(job))
    recorded: list[int] = []
    line.profiler = SimpleNamespace(step_done=recorded.append)  # type: ignore[assignment]
    line.stepped(1, 0.1)
    line.progress(1, None, {"throughput": 1.0})
    line.stepped(2, 0.1)
    line.progress(2, 100, {"throughput": 1.0})
    line.stepped(3, 0.1)
    assert recorded == [3]


def call(name: str, start: float, duration: float, thread: int = 1) -> dict[str, Any]:
    event = {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": thread}
    return event | {"ts": start, "dur": duration}


def test_an_operators_own_time_is_without_the_operators_that_it_calls() -> None:
    events = [
        call("inner", 2, 3),
        call("outer", 0, 10),
        call("inner", 6, 4),
        call("innermost", 2, 1),
        call("outer", 10, 5),
        call("other thread", 1, 8, thread=2),
    ]
    times = {name: (op.calls, op.total, op.own) for name, op in operators_of(events).items()}
    assert times == {
        "outer": (2, 15, 8),
        "inner": (2, 7, 6),
        "innermost": (1, 1, 1),
        "other thread": (1, 8, 8),
    }


def test_the_table_of_a_trace_has_the_gpu_first(tmp_path: Path) -> None:
    kernel = call("sgemm", 0, 2_000, thread=7) | {"cat": "kernel"}
    trace = json.dumps({"traceEvents": [call("aten::mm", 0, 1_000), kernel, {"ph": "i"}]})
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(trace.encode()))
    command = [sys.executable, "-m", operators.__name__, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    gpu, cpu = printed.split("\n\n")[0:2]
    assert gpu.splitlines()[0] == "GPU: 2.0 ms" and gpu.splitlines()[2].split()[-1] == "sgemm"
    assert cpu.splitlines()[0] == "CPU: 1.0 ms" and cpu.splitlines()[2].split()[-1] == "aten::mm"
