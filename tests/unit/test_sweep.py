"""How many trials run at once, and with what."""

from typing import Any

import pytest

from orchestrator.cluster import Cluster
from orchestrator.job import Job
from orchestrator.tune.sweep import resources_of_a_trial, room_for_trials

CLUSTER = Cluster(started_here=False, dashboard_url="", cpus=8, gpus=2)


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
