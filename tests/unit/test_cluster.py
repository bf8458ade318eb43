"""Addresses that are refused, and errors of ours that come back through Ray."""

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from orchestrator.cluster.connection import local_cluster, raised_by_user_code
from orchestrator.cluster.preflight import check_disk
from orchestrator.errors import UserError
from orchestrator.storage.folder import Folder


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265"])
def test_addresses_that_ray_takes_and_that_then_fail_are_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as raised:
        local_cluster()
    assert str(raised.value) == (
        f"RAY_ADDRESS = {address}: this command cannot run through Ray's client or dashboard: use "
        f"`RAY_ADDRESS=http://10.0.0.1:8265 ray job submit --working-dir . -- python -m "
        f"orchestrator ...`, or, on a node of the cluster, RAY_ADDRESS=10.0.0.1:6379"
    )


def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    here = local_cluster()
    assert here is not None and here.room.nodes[0].resources["memory"] > 1e8


def test_a_disk_with_too_little_room_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    check_disk(folder, 1, "the checkpoints")
    with pytest.raises(UserError, match=r"GB left, and the checkpoints take about 1,000,000\.0 GB"):
        check_disk(folder, 10**15, "the checkpoints")


def test_what_ray_data_adds_to_our_error_is_no_part_of_it() -> None:
    advice = "\nFailed to apply UDF transform after 1/1 attempts.\nTo change retry attempts, ..."
    cause = UserError(f"data.csv: line 12: a quote opens{advice}")
    error = RuntimeError("wrapped")
    error.__cause__ = RayTaskError("_read_files", "traceback", cause)
    found = raised_by_user_code(error)
    assert type(found) is UserError and str(found) == "data.csv: line 12: a quote opens"


def test_an_error_of_nobody_s_is_none_of_ours() -> None:
    assert raised_by_user_code(RuntimeError("no")) is None
