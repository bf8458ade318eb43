"""`serve.log`: which requests an endpoint keeps, for how long, and what is taken out of them."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pydantic import Field

from orchestrator.errors import UserError, first_line
from orchestrator.job.keys import Key
from orchestrator.job.strict_section import Share, StrictSection

Redact = Callable[[dict[str, Any]], dict[str, Any] | None]


class RequestLogConfig(StrictSection):
    """A sample of the requests and their answers, in the folder `requests` of the run."""

    share: Share = Field(gt=0, description="of the requests that are kept: 10%; 1: all")
    redact: str | None = Field(
        None,
        description="function my_package.module:function that takes personal data out of a "
        "request and its answer before they are written",
    )
    megabytes: int = Field(
        256, ge=1, description="of the whole log; the oldest files are deleted for new ones"
    )
    days: float = Field(30.0, gt=0, description="after which a file of the log is deleted")


def find_redaction(path: str) -> Redact:
    """The function of an import path `package.module:function`.

    Raises:
        UserError: if there is none, or it does not take exactly one argument.
    """
    module_name, _, name = path.partition(":")
    if not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError("must be an import path such as my_package.module:function")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"cannot be imported: {reason}") from error
    if not callable(function) or isinstance(function, type):
        raise UserError("is not a function")
    if inspect.iscoroutinefunction(function):
        raise UserError("must be a plain function, not an async one")
    try:
        inspect.signature(function).bind({})
    except (TypeError, ValueError):
        raise UserError("must take one argument: the request as a dict") from None
    redact: Redact = function
    return redact


def log_problems(log: RequestLogConfig | None) -> list[tuple[Key, str]]:
    """What is wrong with the redaction: the setting, and the rest of the sentence."""
    if log is None or log.redact is None:
        return []
    try:
        find_redaction(log.redact)
    except UserError as error:
        return [(("serve", "log", "redact"), f" = {log.redact}: {error}")]
    return []
