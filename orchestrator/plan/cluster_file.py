"""Reads the machines of a cluster from the YAML file that `ray up` takes.

Resources that the file leaves to the cloud come from a small table of instance types. A price is a
node type's label `price-per-hour`, since the file's schema allows no keys but Ray's own.
"""

from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import UserError, did_you_mean
from orchestrator.plan.machines import (
    A10G,
    A100,
    A100_80,
    GIB,
    H100,
    H200,
    L4,
    L40S,
    T4,
    V100,
    Accelerator,
    Machine,
    Machines,
)

PRICE = "price-per-hour"
ACCELERATOR = "ray.io/accelerator-type"  # Ray's own label

# CPUs, GiB of memory, GPUs and their kind, by the clouds' own pages.
Instance = tuple[int, float, int, Accelerator | None]
INSTANCES: dict[str, Instance] = {
    "m5.large": (2, 8, 0, None),
    "m5.xlarge": (4, 16, 0, None),
    "m5.2xlarge": (8, 32, 0, None),
    "m5.4xlarge": (16, 64, 0, None),
    "m6i.large": (2, 8, 0, None),
    "m6i.xlarge": (4, 16, 0, None),
    "m6i.2xlarge": (8, 32, 0, None),
    "m7i.xlarge": (4, 16, 0, None),
    "m7i.2xlarge": (8, 32, 0, None),
    "c7i.4xlarge": (16, 32, 0, None),
    "g4dn.xlarge": (4, 16, 1, T4),
    "g4dn.2xlarge": (8, 32, 1, T4),
    "g4dn.12xlarge": (48, 192, 4, T4),
    "g5.xlarge": (4, 16, 1, A10G),
    "g5.2xlarge": (8, 32, 1, A10G),
    "g5.4xlarge": (16, 64, 1, A10G),
    "g5.12xlarge": (48, 192, 4, A10G),
    "g5.48xlarge": (192, 768, 8, A10G),
    "g6.xlarge": (4, 16, 1, L4),
    "g6.2xlarge": (8, 32, 1, L4),
    "g6.12xlarge": (48, 192, 4, L4),
    "g6e.xlarge": (4, 32, 1, L40S),
    "g6e.2xlarge": (8, 64, 1, L40S),
    "g6e.12xlarge": (48, 384, 4, L40S),
    "p3.2xlarge": (8, 61, 1, V100),
    "p4d.24xlarge": (96, 1152, 8, A100),
    "p4de.24xlarge": (96, 1152, 8, A100_80),
    "p5.48xlarge": (192, 2048, 8, H100),
    "p5e.48xlarge": (192, 2048, 8, H200),
    "n1-standard-4": (4, 15, 0, None),
    "n1-standard-8": (8, 30, 0, None),
    "n2-standard-4": (4, 16, 0, None),
    "n2-standard-8": (8, 32, 0, None),
    "e2-standard-4": (4, 16, 0, None),
    "e2-standard-8": (8, 32, 0, None),
    "g2-standard-4": (4, 16, 1, L4),
    "g2-standard-8": (8, 32, 1, L4),
    "g2-standard-48": (48, 192, 4, L4),
    "a2-highgpu-1g": (12, 85, 1, A100),
    "a2-highgpu-8g": (96, 680, 8, A100),
    "a2-ultragpu-1g": (12, 170, 1, A100_80),
    "a3-highgpu-8g": (208, 1872, 8, H100),
}
# By the names of Ray's label, of AWS and of Google.
ACCELERATORS = {
    "T4": T4, "L4": L4, "L40S": L40S, "A10G": A10G, "V100": V100, "A100": A100,
    "A100-40G": A100, "A100-80G": A100_80, "H100": H100, "H200": H200,
    "nvidia-tesla-t4": T4, "nvidia-l4": L4, "nvidia-tesla-v100": V100, "nvidia-tesla-a100": A100,
    "nvidia-a100-80gb": A100_80, "nvidia-h100-80gb": H100,
}  # fmt: skip


def read_machines(path: str) -> Machines:
    """The machines that a cluster of this file can have.

    Raises:
        UserError: if the file cannot be read, or is none for `ray up`.
    """
    content = _content(path)
    if content["provider"].get("type") == "local" or "available_node_types" not in content:
        return _local(path, content)
    types = content["available_node_types"]
    if not isinstance(types, dict) or not types:
        raise UserError(f"{path}: available_node_types: must be a mapping of node types")
    head = str(content.get("head_node_type"))
    if head not in types:
        close = did_you_mean(head, map(str, types))
        raise UserError(
            f"{path}: head_node_type = {head}: names no node type; {close}".rstrip("; ")
        )
    limit = _number(path, "max_workers", content.get("max_workers", 2))
    machines = {name: _machine(path, str(name), value, limit) for name, value in types.items()}
    notes = [
        f"{path}: {name}: its CPUs are unknown: give resources, or a known instance type"
        for name, machine in machines.items()
        if machine.cpus is None
    ]
    the_head = machines[head]
    workers = [machine for name, machine in machines.items() if machine.most and name != head]
    # The head is one machine, and up to `max_workers` more may be of its kind.
    as_worker = Machine(
        the_head.name,
        1 + _most(path, head, types[head], 0),
        the_head.cpus,
        the_head.gpus,
        the_head.memory,
        the_head.accelerator,
        the_head.price,
    )
    return Machines(path, (*workers, as_worker), the_head, tuple(notes))


def _content(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--cluster {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"--cluster {path}: is not a text file") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--cluster {path}: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("provider"), dict):
        raise UserError(
            f"--cluster {path}: is no file for `ray up`, which has cluster_name and provider"
        )
    return content


def _local(path: str, content: dict[str, Any]) -> Machines:
    """Machines that are only named: what they have, Ray learns when it starts there."""
    provider = content["provider"]
    addresses = provider.get("worker_ips") or []
    if not isinstance(addresses, list):
        raise UserError(f"{path}: provider.worker_ips: must be a list of addresses")
    kind = Machine("machine", most=len(addresses) + 1)
    note = (
        f"{path}: names {kind.most} machines and not what they have: whether workers fit them "
        "is unknown until they run"
    )
    return Machines(path, (kind,), None, (note,))


def _machine(path: str, name: str, value: Any, limit: int) -> Machine:
    if not isinstance(value, dict):
        raise UserError(f"{path}: available_node_types.{name}: must be a mapping")
    config, labels = value.get("node_config") or {}, value.get("labels") or {}
    resources = value.get("resources") or {}
    for key, section in (("node_config", config), ("labels", labels), ("resources", resources)):
        if not isinstance(section, dict):
            raise UserError(f"{path}: available_node_types.{name}.{key}: must be a mapping")
    instance = str(config.get("InstanceType") or config.get("machineType") or "").split("/")[-1]
    cpus, memory, gpus, kind = INSTANCES.get(instance, (None, None, 0, None))
    given = {key: _number(path, f"{name}.resources.{key}", n) for key, n in resources.items()}
    accelerator, added = _accelerators(config, labels)
    return Machine(
        name,
        most=min(_most(path, name, value, limit), limit),
        cpus=given.get("CPU", cpus),
        gpus=given.get("GPU", added or gpus),
        # Ray's `memory` is what workers may reserve, about 0.7 of the machine's.
        memory=given.get("memory", None if memory is None else memory * GIB),
        accelerator=accelerator or kind,
        price=_price(path, name, labels),
    )


def _accelerators(
    config: dict[str, Any], labels: dict[str, Any]
) -> tuple[Accelerator | None, float]:
    """The kind of GPU that is named, and the number of them that Google's files add."""
    added = config.get("guestAccelerators") or []
    if added and isinstance(added, list) and isinstance(added[0], dict):
        name = str(added[0].get("acceleratorType", "")).split("/")[-1]
        return ACCELERATORS.get(name), float(added[0].get("acceleratorCount", 1))
    return ACCELERATORS.get(str(labels.get(ACCELERATOR, ""))), 0.0


def _most(path: str, name: str, value: dict[str, Any], otherwise: int) -> int:
    return _number(path, f"{name}.max_workers", value.get("max_workers", otherwise))


def _number(path: str, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{path}: {key} = {value}: must be a whole number, 0 or more")
    return value


def _price(path: str, name: str, labels: dict[str, Any]) -> float | None:
    value = labels.get(PRICE)
    if value is None:
        return None
    try:
        price = float(value)
    except (TypeError, ValueError):
        price = -1.0
    if not 0 <= price < float("inf"):
        raise UserError(f"{path}: {name}.labels.{PRICE} = {value}: must be dollars, as in '3.06'")
    return price
