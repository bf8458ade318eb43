"""The machines of a file for `ray up`, and what of a job does not fit them."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.plan.cluster_file import read_machines
from orchestrator.plan.fit import misfits
from orchestrator.plan.machines import A100, L4, T4, Machine, Machines
from orchestrator.plan.memory import Mode, worker_memory
from orchestrator.plan.parameters import count
from orchestrator.plan.shapes import Shapes, shapes

AWS: dict[str, Any] = {
    "cluster_name": "a",
    "max_workers": 6,
    "provider": {"type": "aws", "region": "us-west-2"},
    "head_node_type": "head",
    "available_node_types": {
        "head": {
            "resources": {},
            "node_config": {"InstanceType": "m5.xlarge"},
            "labels": {"price-per-hour": "0.192"},
        },
        "gpu_worker": {
            "resources": {"CPU": 8, "GPU": 1},
            "node_config": {"InstanceType": "g6.2xlarge"},
            "min_workers": 0,
            "max_workers": 4,
            "labels": {"price-per-hour": "0.98"},
        },
    },
}
GCP = {
    **AWS,
    "provider": {"type": "gcp", "region": "us-west1", "project_id": None},
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "node_config": {"machineType": "n2-standard-4"}},
        "gpu_worker": {
            "resources": {},
            "node_config": {
                "machineType": "zones/us-west1-b/machineTypes/n1-standard-8",
                "guestAccelerators": [
                    {"acceleratorType": "projects/p/nvidia-tesla-t4", "acceleratorCount": 2}
                ],
            },
            "max_workers": 2,
        },
    },
}
LOCAL = {
    "cluster_name": "a",
    "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]},
}


def written(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def changed(**worker: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(AWS))
    content["available_node_types"]["gpu_worker"].update(worker)
    return content


def make(**sections: Any) -> Job:
    base = {"name": "a", "task": "language_modelling", "data": {"source": "x"}}
    return Job.model_validate({**base, "model": {"size": "small"}, **sections})


@pytest.mark.parametrize("content", [AWS, GCP, LOCAL])
def test_the_files_of_these_tests_are_files_for_ray_up(content: dict[str, Any]) -> None:
    schema = Path(ray.__file__).parent / "autoscaler/ray-schema.json"
    jsonschema.validate(content, json.loads(schema.read_text()))


def test_a_file_of_aws(tmp_path: Path) -> None:
    machines = read_machines(written(tmp_path, AWS))
    worker, head = machines.kinds
    assert (worker.name, worker.most, worker.cpus, worker.gpus) == ("gpu_worker", 4, 8.0, 1.0)
    assert worker.accelerator == L4 and worker.memory == 32 * 2**30 and worker.price == 0.98
    assert (head.name, head.most, head.cpus, head.price) == ("head", 1, 4.0, 0.192)
    assert machines.head is not None and machines.head.name == "head"
    on_gpus = make(cluster={"gpus_per_worker": 1, "workers": 2}).cluster
    assert machines.most_workers(on_gpus) == 4
    assert machines.place(on_gpus, 3) == (worker, 3, 1)
    on_cpus = make(cluster={"workers": 12}).cluster
    assert machines.most_workers(on_cpus) == 36
    assert machines.place(on_cpus, 12) == (worker, 2, 8)


def test_a_file_of_gcp_adds_its_accelerators(tmp_path: Path) -> None:
    worker, _ = read_machines(written(tmp_path, GCP)).kinds
    assert (worker.cpus, worker.gpus, worker.accelerator) == (8, 2.0, T4)


def test_resources_of_the_file_count_more_than_the_table(tmp_path: Path) -> None:
    content = changed(
        resources={"CPU": 2, "GPU": 4, "memory": 10**9},
        labels={"ray.io/accelerator-type": "A100"},
        max_workers=50,
    )
    worker, _ = read_machines(written(tmp_path, content)).kinds
    assert (worker.cpus, worker.gpus, worker.memory) == (2, 4, 10**9)
    assert worker.accelerator == A100 and worker.price is None
    assert worker.most == 6  # the file's max_workers


def test_machines_that_are_only_named_are_unknown_and_say_so(tmp_path: Path) -> None:
    machines = read_machines(written(tmp_path, LOCAL))
    assert machines.kinds[0].most == 3 and machines.cpus is None
    assert "3 machines and not what they have" in machines.notes[0]
    job = make(cluster={"workers": 500})
    assert misfits(job, count(job, None), shapes(job, None, 500), machines, Mode("fp32")) == []
    machines = read_machines(written(tmp_path, changed(node_config={}, resources={})))
    assert "gpu_worker: its CPUs are unknown" in machines.notes[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[1, 2", "flow sequence"),
        ("a: 1", "is no file for `ray up`"),
        ({**AWS, "head_node_type": "haed"}, "head_node_type = haed: names no node type; did you"),
        ({**AWS, "max_workers": "many"}, "max_workers = many: must be a whole number"),
        (changed(max_workers=-1), "gpu_worker.max_workers = -1"),
        (changed(resources={"CPU": 1.5}), "gpu_worker.resources.CPU = 1.5"),
        (changed(labels={"price-per-hour": "cheap"}), "price-per-hour = cheap: must be dollars"),
        (changed(node_config=[]), None),
        ({**AWS, "available_node_types": []}, "available_node_types: must be a mapping"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: Any, problem: str | None) -> None:
    path = written(tmp_path, content)
    if problem is None:  # an empty section
        assert read_machines(path).kinds[0].cpus == 8
        return
    with pytest.raises(UserError) as caught:
        read_machines(path)
    assert problem in str(caught.value) and path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_machines(str(tmp_path / "none.yaml"))


def fitted(job: Job, machine: Machine, precision: str = "fp32") -> list[str]:
    the_shapes: Shapes = shapes(job, None, job.cluster.fewest_workers)
    found = misfits(
        job, count(job, None), the_shapes, Machines("file", (machine,)), Mode(precision)
    )
    return [str(misfit) for misfit in found]


def test_more_workers_than_there_is_room_for() -> None:
    (line,) = fitted(make(cluster={"workers": 8}), Machine("m", 2, cpus=3.0))
    assert (
        "cluster.workers = 8 with 1 CPU each: file has room for 6; the most that fit are 6" in line
    )
    (line,) = fitted(make(cluster={"cpus_per_worker": 4}), Machine("m", 9, cpus=3.0))
    assert "none fits a machine" in line


def test_the_largest_micro_batch_that_fits_really_is() -> None:
    train = {"global_batch_size": 512, "micro_batch_size": 512}
    job = make(train=train)
    (line,) = fitted(job, Machine("m", 1, cpus=4.0, memory=12e9))
    assert "GB of m's memory" in line
    rows = int(line.rpartition("train.micro_batch_size=")[2].split()[0])
    for count_of_rows, fits in ((rows, True), (rows + 1, False)):
        smaller = make(train={**train, "micro_batch_size": count_of_rows})
        assert (fitted(smaller, Machine("m", 1, cpus=4.0, memory=12e9)) == []) == fits


def test_a_model_that_is_too_large_names_a_size_that_is_not() -> None:
    huge = {"num_layers": 48, "d_model": 4096, "num_heads": 32, "max_seq_len": 512}
    (line,) = fitted(make(model=huge), Machine("m", 1, cpus=4.0, memory=8e9))
    size = line.partition("model.size=")[2].split()[0]
    fits = make(model={"size": size, "max_seq_len": 512}, train={"micro_batch_size": 1})
    assert fitted(fits, Machine("m", 1, cpus=4.0, memory=8e9)) == []


def test_a_gpu_has_a_memory_of_its_own() -> None:
    job = make(
        model={"size": "large", "max_seq_len": 1024},
        train={"global_batch_size": 256, "micro_batch_size": 256},
        cluster={"gpus_per_worker": 1},
    )
    machine = Machine("m", 1, cpus=8.0, gpus=1.0, memory=64e9, accelerator=A100)
    (line,) = fitted(job, machine, "bf16")
    assert "of its A100, and has 40.0" in line
    memory = worker_memory(job, count(job, None), shapes(job, None, 1).largest, Mode("bf16"))
    assert memory.host and memory.total > 40e9 > memory.on_host
