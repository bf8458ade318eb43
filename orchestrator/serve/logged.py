"""The log of requests, as it is read back: Parquet files in the run's folder `requests`.

A file's name begins with the time at which it was written, so names sort by time.
"""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import UserError, first_line
from orchestrator.storage.folder import Folder

FOLDER = "requests"  # of a run
NAME = re.compile(r"(\d{8}T\d{12}Z)-[0-9a-f]{8}\.parquet")
TIME = "%Y%m%dT%H%M%S%fZ"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("path", pa.string()),
        ("version", pa.string()),
        ("status", pa.int32()),
        ("complete", pa.bool_()),
        ("seconds", pa.float64()),
        ("request", pa.string()),
        ("answer", pa.string()),
    ]
)


@dataclass(frozen=True)
class LoggedRequest:
    """A request and its answer.

    `id` is the answer's header `x-request-id`. `path` is the route, below `serve.route_prefix`.
    `request` and `answer` are values of JSON; a stream is joined to the answer that it amounts to.
    `complete` is false if the client left before the answer's end. `seconds` are from the
    request's arrival to the end of its answer.
    """

    id: str
    time: datetime
    path: str
    version: str
    status: int
    complete: bool
    seconds: float
    request: Any
    answer: Any


def read_requests(
    run: Folder, since: datetime | None = None, until: datetime | None = None
) -> Iterator[LoggedRequest]:
    """The logged requests of a run that came in a span of time, about in the order of their end.

    A file that is deleted meanwhile, since it is too old, is left out.

    Args:
        since: the first moment, with its time zone.
        until: the first moment after the span.

    Raises:
        UserError: if a file is damaged.
        StageError: if the storage fails.
    """
    folder = run / FOLDER
    for name in folder.names():
        written = written_at(name)
        if written is None or (since is not None and written < since):
            continue
        try:
            content = folder.read(name)
        except FileNotFoundError:
            continue
        try:
            rows = pq.read_table(pa.BufferReader(content), schema=SCHEMA).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{folder}/{name}: is damaged ({first_line(error)}): delete it") from (
                error
            )
        for row in rows:
            if (since is None or row["time"] >= since) and (until is None or row["time"] < until):
                texts = {key: json.loads(row[key]) for key in ("request", "answer")}
                yield LoggedRequest(**{**row, **texts})


def written_at(name: str) -> datetime | None:
    """When a file was written, by its name; None if it is no file of the log."""
    found = NAME.fullmatch(name)
    return None if found is None else datetime.strptime(found[1], TIME).replace(tzinfo=UTC)


def new_name(time: datetime) -> str:
    """The name of a file that is written at a time."""
    return f"{time.astimezone(UTC):{TIME}}-{secrets.token_hex(4)}.parquet"


def encoded(requests: Sequence[LoggedRequest]) -> bytes:
    """The content of a file."""
    rows = [
        {**vars(each), "request": json.dumps(each.request), "answer": json.dumps(each.answer)}
        for each in requests
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue())
