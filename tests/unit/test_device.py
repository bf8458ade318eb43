"""Who computes on a GPU: the job says, not the machine."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.errors import UserError
from orchestrator.infer.device import device_for
from orchestrator.job.job import Job
from orchestrator.train import worker


def job(**sections: Any) -> Job:
    given = {"name": "a", "task": "language_modelling", "data": {"source": "python-stdlib"}}
    return Job.model_validate({**given, **sections})


def test_a_process_that_asked_for_no_gpu_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # Ray hides no GPU from it
    assert device_for("cluster.gpus_per_worker", 0) == torch.device("cpu")
    assert worker._device(job()) == torch.device("cpu")
    assert device_for("cluster.gpus_per_worker", 0.5) == torch.device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_does_not_find_is_named_by_its_key() -> None:
    with pytest.raises(UserError, match=r"serve\.gpus_per_replica = 0\.5: torch .* finds no GPU"):
        device_for("serve.gpus_per_replica", 0.5)
    with pytest.raises(UserError, match=r"cluster\.gpus_per_worker = 1: "):
        worker._device(job(cluster={"gpus_per_worker": 1}))


@pytest.mark.parametrize(
    ("serve", "gpus"),
    [({}, 1.0), ({"gpus_per_replica": 0}, 0.0), ({"gpus_per_replica": 0.25}, 0.25)],
)
def test_a_replica_has_a_worker_s_gpus_unless_the_job_says(
    serve: dict[str, Any], gpus: float
) -> None:
    assert job(cluster={"gpus_per_worker": 1}, serve=serve).gpus_per_replica == gpus


@pytest.mark.parametrize(
    ("sections", "key", "told"),
    [
        ({"cluster": {"gpus_per_worker": 2}}, "gpus_per_worker", "one GPU"),
        ({"cluster": {"gpus_per_worker": 1.5}}, "gpus_per_worker", "one GPU"),
        ({"cluster": {"gpus_per_worker": 0.5, "workers": 2}}, "cluster", "0.5 with 2 workers"),
        ({"cluster": {"gpus_per_worker": 0.5, "workers": (1, 4)}}, "cluster", "0.5 with 4 workers"),
        ({"serve": {"gpus_per_replica": 2}}, "gpus_per_replica", "less than or equal to 1"),
    ],
)
def test_gpus_that_workers_cannot_use_are_refused(
    sections: dict[str, Any], key: str, told: str
) -> None:
    with pytest.raises(ValueError, match=told) as error:
        job(**sections)
    assert error.value.errors()[0]["loc"][-1] == key  # type: ignore[attr-defined]


def test_a_part_of_a_gpu_is_for_one_worker_and_for_trials_of_one() -> None:
    tune: dict[str, Any] = {"space": {"train.lr": {"uniform": [0.1, 0.2]}}}
    alone = job(cluster={"gpus_per_worker": 0.5}, tune=tune)
    assert alone.problems() == []
    shared = job(cluster={"gpus_per_worker": 0.5}, tune={**tune, "workers": 2})
    ((key, problem),) = shared.problems()
    assert key == ("cluster", "gpus_per_worker") and "2 workers of a trial" in problem
    whole = job(cluster={"gpus_per_worker": 1, "workers": 2}, tune={**tune, "workers": 2})
    assert whole.problems() == []


def test_nccl_ends_a_worker_that_waits_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}  # the user's own value stays
    monkeypatch.setattr(worker, "os", SimpleNamespace(environ=environment))
    worker._watch_nccl(job(cluster={"gpus_per_worker": 1, "hang_seconds": 20}, train={"steps": 9}))
    assert environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
    patience = 20 + worker.GRACE_SECONDS + worker.NCCL_SECONDS
    assert environment["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == str(int(patience))
    assert "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC" not in os.environ
    header = "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    source = Path(torch.__file__).with_name(header.partition("/")[0]) / header.partition("/")[2]
    for name in environment:  # torch still reads them
        assert f'"{name}"' in source.read_text()
