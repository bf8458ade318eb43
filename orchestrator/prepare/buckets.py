"""Buckets: groups of rows by key. Each is encoded into one shard per split.

A bucket is finished when its part file is written, and is not done again then.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
import ray.data

from orchestrator.data.arrays import Arrays
from orchestrator.data.shards import write_shard
from orchestrator.job.job import Job
from orchestrator.prepare.index import Index, share
from orchestrator.prepare.keys import Table, bucket_of
from orchestrator.prepare.splits import Bounds
from orchestrator.progress import Progress
from orchestrator.storage.artifact import SPLITS, Split
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

MIN_BUCKET_BYTES = 2 << 20  # below this a bucket is not worth a task
MAX_BUCKET_BYTES = 64 << 20  # one task holds a bucket in memory
PARALLEL_BUCKETS = 8  # even if fewer would hold the data
TOLD_IF_CUT = 0.01  # of the rows


def count_buckets(source_bytes: int) -> int:
    count = min(PARALLEL_BUCKETS, source_bytes // MIN_BUCKET_BYTES)
    return max(1, count, -(-source_bytes // MAX_BUCKET_BYTES))


def write_buckets(
    task: Task[Any],
    rows: ray.data.Dataset,
    bounds: Bounds,
    processor_file: str,
    folder: Folder,
    num_buckets: int,
    index: Index,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Encode bucket by bucket; returns a description of each bucket, in order."""
    parts = {part["bucket"]: part for part in _finished_parts(folder)}
    buckets = [bucket_of(key, num_buckets) for key in index.keys]
    done = sum(bucket in parts for bucket in buckets)
    progress.start("encoding", total=len(buckets), unit="rows", done=done)
    if len(parts) < len(set(buckets)):
        settings = {
            "task": task,
            "bounds": bounds,
            "processor_file": processor_file,
            "folder_uri": folder.uri,
        }
        groups = rows.groupby("bucket", num_partitions=num_buckets)
        written = groups.map_groups(
            _write_bucket,  # type: ignore[arg-type]  # Ray's type lacks fn_kwargs
            fn_kwargs=settings,
            batch_format="numpy",
        )
        for row in written.iter_rows():
            part = json.loads(row["part"])
            if part["bucket"] not in parts:
                parts[part["bucket"]] = part
                progress.advance(part["rows"])
    progress.finish()
    return [parts[bucket] for bucket in sorted(parts)]


def _finished_parts(folder: Folder) -> list[dict[str, Any]]:
    names = [name for name in folder.names() if name.startswith("part-")]
    return [json.loads(folder.read(name)) for name in names]


def _write_bucket(
    group: Table, task: Task[Any], bounds: Bounds, processor_file: str, folder_uri: str
) -> Table:
    """Encode a bucket's rows into one shard per split. The part file is written last."""
    folder = Folder(folder_uri)
    bucket = int(group["bucket"][0])
    if bucket < 0:  # the empty and the bad rows
        return {"part": np.array([], dtype=str)}
    part_file = f"part-{bucket:05d}.json"
    if folder.exists(part_file):  # written by an interrupted run
        return {"part": np.array([folder.read(part_file).decode()])}
    processor = task.load_processor(folder.read(processor_file))
    unique: dict[str, int] = {}
    for i in np.argsort(group["key"], kind="stable"):
        unique.setdefault(group["key"][i], i)
    shards, full = {}, Counter[str]()
    for number, split in enumerate(SPLITS):
        chosen = [i for key, i in unique.items() if bounds.split(key) == split]
        rows = [{name: group[name][i] for name in task.columns} for i in chosen]
        arrays = task.encode(rows, processor)
        arrays = arrays if split == "train" else {**arrays, **task.keep(rows)}
        full.update(_full(arrays, len(rows)))
        arrays = shuffled(arrays, seed=(bucket, number))
        if len(next(iter(arrays.values()))):
            name = f"{split}-{bucket:05d}.arrow"
            shards[split] = write_shard(folder, name, arrays).model_dump()
    part = {
        "bucket": bucket,
        "rows": len(group["key"]),
        "duplicates": len(group["key"]) - len(unique),
        "shards": shards,
        "full": full,
    }
    folder.write(part_file, json.dumps(part).encode())
    return {"part": np.array([json.dumps(part)])}


def shuffled(arrays: Arrays, seed: tuple[int, ...]) -> Arrays:
    """The same rows in a random order of the seed."""
    count = len(next(iter(arrays.values())))
    order = np.random.default_rng(seed).permutation(count)
    return {name: array[order] for name, array in arrays.items()}


def _full(arrays: Arrays, rows: int) -> dict[str, int]:
    """The number of rows that fill all token positions, per column; empty if a row may become
    several samples, so that nothing is cut."""
    if len(next(iter(arrays.values()))) != rows:
        return {}
    return {
        name: int((arrays[f"{name}_length"] == arrays[name].shape[1]).sum())
        for name in arrays
        if f"{name}_length" in arrays
    }


def cut_rows(parts: list[dict[str, Any]], rows: dict[Split, int], job: Job) -> list[str]:
    """Notices on rows that fill `model.max_seq_len`, if there are many."""
    total = sum(rows.values())
    full = Counter[str]()
    for part in parts:
        full.update(part["full"])
    return [
        f"{share(count, total, 'rows')} fill model.max_seq_len = {job.model.max_seq_len} with "
        f"their {name}: what is longer is cut"
        for name, count in full.items()
        if count > TOLD_IF_CUT * total
    ]
