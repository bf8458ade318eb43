"""Errors of ours that come back through Ray."""

from ray.exceptions import RayTaskError

from orchestrator.cluster.connection import raised_by_user_code
from orchestrator.errors import UserError


def test_what_ray_data_adds_to_our_error_is_no_part_of_it() -> None:
    advice = "\nFailed to apply UDF transform after 1/1 attempts.\nTo change retry attempts, ..."
    cause = UserError(f"data.csv: line 12: a quote opens{advice}")
    error = RuntimeError("wrapped")
    error.__cause__ = RayTaskError("_read_files", "traceback", cause)
    found = raised_by_user_code(error)
    assert type(found) is UserError and str(found) == "data.csv: line 12: a quote opens"


def test_an_error_of_nobody_s_is_none_of_ours() -> None:
    assert raised_by_user_code(RuntimeError("no")) is None
