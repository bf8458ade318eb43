"""How many trials run at once, and with what."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.room import Node, Room
from orchestrator.job.job import Job
from orchestrator.learn.precision import Choice
from orchestrator.storage.folder import Folder
from orchestrator.tune import sweep
from orchestrator.tune.records import SweepRecord
from orchestrator.tune.sweep import resources_of_a_trial, room_for_trials, with_precision

ROOM = Room((Node("a", "10.0.0.1", {"CPU": 8, "GPU": 2}),))
CLUSTER = Cluster(started_here=False, dashboard_url="", room=ROOM)


@pytest.mark.parametrize(
    ("sizes", "workers", "room", "resources"),
    [
        ({}, 1, 8, {"CPU": 1.0}),
        ({"cpus_per_worker": 3}, 1, 2, {"CPU": 3.0}),
        ({"gpus_per_worker": 1}, 1, 2, {"CPU": 1.0, "GPU": 1.0}),
        ({"gpus_per_worker": 0.5}, 1, 4, {"CPU": 1.0, "GPU": 0.5}),
        ({"gpus_per_worker": 0.1}, 1, 8, {"CPU": 1.0, "GPU": 0.1}),
        ({"gpus_per_worker": 0.5}, 2, 2, {"memory": 1.0}),
        ({"cpus_per_worker": 16}, 1, 1, {"CPU": 16.0}),
    ],
)
def test_a_sweep_asks_for_no_more_than_there_is(
    sizes: dict[str, Any], workers: int, room: int, resources: dict[str, float]
) -> None:
    tune = {"workers": workers, "space": {"train.lr": {"uniform": [0.1, 0.2]}}}
    given = {"name": "sweep", "task": "language_modelling", "data": {"source": "python-stdlib"}}
    job = Job.model_validate({**given, "cluster": sizes, "tune": tune})
    assert room_for_trials(job, CLUSTER) == room
    assert resources_of_a_trial(job) == resources


def sweeping(**sections: Any) -> Job:
    given = {"name": "sweep", "task": "language_modelling", "data": {"source": "python-stdlib"}}
    return Job.model_validate({**given, "tune": {}, **sections})


def test_a_sweep_chooses_its_trials_precision_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choices = [Choice("bf16", "because")]
    monkeypatch.setattr(sweep, "choose_for_trials", lambda job, prepared: choices.pop())
    folder, job, prepared = Folder(str(tmp_path)), sweeping(), None
    for _ in range(2):  # killed after the first
        record = SweepRecord.load(folder) or sweep._new_record(job, CLUSTER)
        assert with_precision(job, prepared, record, folder).train.precision == "bf16"
    assert record.notices == ["precision: bf16: because"] and not choices


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"precision": "fp32"}},
        {"tune": {"space": {"train.precision": {"choice": ["fp32", "bf16"]}}}},
    ],
)
def test_a_sweep_leaves_a_precision_that_is_given(sections: dict[str, Any], tmp_path: Path) -> None:
    job, folder = sweeping(**sections), Folder(str(tmp_path))
    record = sweep._new_record(job, CLUSTER)
    assert with_precision(job, None, record, folder) == job
    assert record.precision is None
