"""Keys: the hash of a row's cleaned content, which decides its split and bucket.

Rows that are duplicates share a key. One half of it says the split, the other half the bucket, and
a bucket becomes one shard of each split: so the shards are a function of the data alone, never of
the number of machines or of the order in which they worked.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.kinds.registry import KINDS
from orchestrator.data.reading import BadRow, Note, Row
from orchestrator.storage.artifact import Split
from orchestrator.tasks.task import Task

HASH = 32  # hexadecimal digits of a key; a code of the row's given split may follow
GIVEN: dict[str, Split] = {"v": "validation", "t": "test"}
Table = dict[str, npt.NDArray[Any]]  # records by column

INDEXED = ["key", "bytes", "value", "code", "twin", "aside", "note"]  # of `record`


def record(
    cleaned: Row | BadRow | Note | None,
    task: Task[Any],
    num_buckets: int,
    place: str = "",
    code: str = "",
) -> dict[str, Any]:
    """A row with its key. `place` keeps equal rows apart, `code` is one of GIVEN.

    `twin` is equal where rows say the same to the model, `value` is of the task's counted column.
    """
    columns: dict[str, Any] = {name: KINDS[kind].blank for name, kind in task.columns.items()}
    columns |= {"key": "", "bucket": -1, "bytes": 0, "twin": 0, "value": "", "code": code}
    columns |= {"aside": "", "note": ""}
    if isinstance(cleaned, Note):
        return columns | {"note": json.dumps(asdict(cleaned))}
    if isinstance(cleaned, BadRow):
        return columns | {"aside": json.dumps(asdict(cleaned))}
    if cleaned is None:
        return columns
    content = _canonical(cleaned)
    first = _hash(content + place.encode())
    shared = first if task.split_by is None else _hash(cleaned[task.split_by].encode())
    key = first[: HASH // 2] + shared[HASH // 2 :]
    inputs = _canonical([cleaned[name] for name in task.inputs])
    return cleaned | {
        "key": key + code,
        "bucket": bucket_of(key, num_buckets),
        "bytes": len(content) + sum(len(v) for v in cleaned.values() if isinstance(v, bytes)),
        "twin": int(_hash(inputs)[:16], 16) - (1 << 63),
        "value": "" if task.counted is None else cleaned[task.counted],
        "code": code,
        "aside": "",
        "note": "",
    }


def table_of(records: list[dict[str, Any]]) -> Table:
    """Records as columns. Texts and bytes are objects: numpy's own types would pad them to the
    longest and lose NULs at their ends."""
    return {
        name: np.array(
            [r[name] for r in records], dtype=object if isinstance(v, str | bytes) else None
        )
        for name, v in records[0].items()
    }


def bucket_of(key: str, num_buckets: int) -> int:
    return int(key[: HASH // 2], 16) % num_buckets


def place_of(key: str) -> float:
    """The place of a key among all keys, from 0 to 1. It decides the split."""
    return int(key[HASH // 2 : HASH], 16) / 2.0**64


def _canonical(values: Row | list[Any]) -> bytes:
    """Equal bytes for equal values. Bytes among the values are replaced by their hash."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False, default=_hash).encode()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=HASH // 2).hexdigest()
