"""Raw files into encoded, shuffled shards, on Ray Data.

Every row gets a key, the hash of its cleaned content, and all else follows from keys: duplicates
share one, the split is one half of it, the bucket the other. A bucket becomes one shard of each
split, so that the shards depend on the data alone, never on how many machines there were or in
which order they worked, and a bucket that is finished is not done again.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.data
from ray.data.context import ShuffleStrategy

from orchestrator.artifact import SPLITS, PreparedData, Shard, Split
from orchestrator.errors import UserError
from orchestrator.folder import Folder
from orchestrator.job import Job
from orchestrator.progress import Progress
from orchestrator.rows import BadRow, read_cleaned
from orchestrator.shards import Arrays, write_shard
from orchestrator.sources import SourceFile, total_bytes
from orchestrator.task import Row, Task

MIN_BUCKET_BYTES = 2 << 20  # below this a bucket is not worth a task
MAX_BUCKET_BYTES = 64 << 20  # one task holds a bucket in memory
PARALLEL_BUCKETS = 8  # as many as that even where fewer would hold the data
SAMPLE_BYTES = 8 << 20  # of training text that the processor is fitted to
READ_BYTES = 4 << 20  # of input files that one task reads

Table = dict[str, npt.NDArray[Any]]

HASH = 32  # hexadecimal digits of a key; what stands behind them names the row's split
GIVEN: dict[str, Split] = {"v": "validation", "t": "test"}


@dataclass(frozen=True)
class Bounds:
    """Where the splits end: a row's place, from 0 to 1, is the second half of its hash."""

    test: float
    validation: float

    def split(self, key: str) -> Split:
        if len(key) > HASH:
            return GIVEN[key[HASH:]]
        place = _place(key)
        if place < self.test:
            return "test"
        return "validation" if place < self.validation else "train"


def prepare(
    job: Job,
    files: list[SourceFile],
    folder: Folder,
    progress: Progress,
    notes: Sequence[str] = (),
) -> PreparedData:
    """Read, clean, split, encode and write the job's data into `folder`.

    `notes` are what its user should know of how the files were found.

    Raises:
        UserError: where the data is too bad or too little.
    """
    started = time.monotonic()
    task = job.build_task()
    ray.data.DataContext.get_current().shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    source_bytes = total_bytes(files)
    num_buckets = _num_buckets(source_bytes)

    rows = _read(task, files, num_buckets, progress)
    index = _Index(rows)
    quarantine(index.bad, job, folder)
    if not index.keys:
        raise UserError(f"data.source = {job.data.source}: not one of its rows holds any text")
    bounds = split_bounds(
        index,
        0.0 if job.data.validation_source else job.data.validation_fraction,
        0.0 if job.data.test_source else job.data.test_fraction,
    )

    processor_file = _fit_processor(task, rows, index, bounds, folder, progress)
    parts = _write(task, rows, bounds, processor_file, folder, num_buckets, index, progress)

    splits: dict[Split, list[Shard]] = {
        split: [Shard(**part["shards"][split]) for part in parts if split in part["shards"]]
        for split in SPLITS
    }
    _check_splits(splits, job)
    duplicates = sum(part["duplicates"] for part in parts)
    kept = len(index.keys) - duplicates
    counts = {split: sum(shard.rows for shard in shards) for split, shards in splits.items()}
    return PreparedData(
        folder=folder,
        seconds=time.monotonic() - started,
        summary=f"{kept:,} documents, {counts['train']:,} training samples",
        processor=processor_file,
        splits=splits,
        documents={
            "kept": kept,
            "empty": index.empty,
            "duplicate": duplicates,
            "quarantined": len(index.bad),
        },
        source_bytes=source_bytes,
        notices=[*notes],
    ).commit()


def _read(
    task: Task[Any], files: list[SourceFile], num_buckets: int, progress: Progress
) -> ray.data.Dataset:
    """All rows with their keys, read once and kept in the cluster's object store."""
    total = sum(file.bytes for file in files)
    blocks = min(len(files), max(PARALLEL_BUCKETS, total // READ_BYTES))
    items = [{"file": json.dumps(asdict(file))} for file in files]
    reading = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        partial(_read_files, task=task, num_buckets=num_buckets), batch_size=None
    )
    references = []
    progress.start("reading", total=len(files), unit="files")
    for bundle in reading.iter_internal_ref_bundles():
        references += list(bundle.block_refs)
        progress.advance(len(files) / blocks)
    progress.finish()
    return ray.data.from_arrow_refs(references)


def _read_files(batch: Table, task: Task[Any], num_buckets: int) -> Iterator[Table]:
    """Rows of some files: kept ones with their key, empty and bad ones without content."""
    for text in batch["file"]:
        file = _file(json.loads(text))
        records = []
        for number, row in enumerate(read_cleaned(file, task)):
            # Of rows that were given as a split, none is a duplicate, and none is dropped.
            place = f"{number} {file.uri}" if file.split else ""
            code = file.split[0] if file.split else ""
            records.append(_record(row, task, num_buckets, place, code))
            if len(records) == 4096:
                yield _table(records)
                records = []
        if records:
            yield _table(records)


def _file(content: dict[str, Any]) -> SourceFile:
    beside = tuple(_file(each) for each in content.pop("beside"))
    return SourceFile(**content, beside=beside)


def _record(
    cleaned: Row | BadRow | None,
    task: Task[Any],
    num_buckets: int,
    place: str = "",
    code: str = "",
) -> dict[str, Any]:
    """A row with its key; `place` tells apart what may be equal, `code` is of GIVEN."""
    record: dict[str, Any] = dict.fromkeys(task.columns, "")
    record |= {"key": "", "bucket": -1, "bytes": 0, "bad": ""}
    if isinstance(cleaned, BadRow):
        return record | {"bad": json.dumps(asdict(cleaned))}
    if cleaned is None:
        return record
    content = json.dumps(cleaned, sort_keys=True, ensure_ascii=False).encode()
    first = _hash(content + place.encode())
    shared = first if task.split_by is None else _hash(cleaned[task.split_by].encode())
    key = first[: HASH // 2] + shared[HASH // 2 :]
    return cleaned | {
        "key": key + code,
        "bucket": int(key[:16], 16) % num_buckets,
        "bytes": len(content),
        "bad": "",
    }


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=HASH // 2).hexdigest()


def _table(records: list[dict[str, Any]]) -> Table:
    """Columns; text as objects, since numpy's own would pad it all to the longest and lose NULs."""
    return {
        name: np.array([r[name] for r in records], dtype=object if isinstance(v, str) else None)
        for name, v in records[0].items()
    }


class _Index:
    """What the driver knows of the rows: the keys and sizes of the kept ones, and the bad ones."""

    def __init__(self, rows: ray.data.Dataset) -> None:
        self.keys: list[str] = []
        self.bytes: list[int] = []
        self.bad: list[BadRow] = []
        self.empty = 0
        for batch in rows.select_columns(["key", "bytes", "bad"]).iter_batches(batch_size=None):
            for key, size, bad in zip(batch["key"], batch["bytes"], batch["bad"], strict=True):
                if key:
                    self.keys.append(key)
                    self.bytes.append(int(size))
                elif bad:
                    self.bad.append(BadRow(**json.loads(bad)))
                else:
                    self.empty += 1


def quarantine(bad: list[BadRow], job: Job, folder: Folder) -> None:
    """Keep the bad rows' places and reasons beside the data; too many of them end the stage."""
    bad = sorted(bad, key=lambda row: (row.file, row.row))
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad]
    folder.write("quarantine.jsonl", "".join(lines).encode())
    if len(bad) > (job.data.max_bad_rows or 0):
        first = bad[0]
        raise UserError(
            f"{len(bad)} bad rows, more than data.max_bad_rows = {job.data.max_bad_rows}; "
            f"the first: {first.file}, row {first.row}: {first.reason} "
            f"(all of them: {folder}/quarantine.jsonl)"
        )


def split_bounds(index: _Index, validation_fraction: float, test_fraction: float) -> Bounds:
    """Bounds that give test and validation at least their share of the bytes, and one row each.

    Of three rows or more, a row is also left for each split that comes after.
    """
    sizes = dict(zip(index.keys, index.bytes, strict=True))  # a duplicate counts once
    sizes = {key: size for key, size in sizes.items() if len(key) == HASH}
    if not sizes:
        raise UserError("data.source: not one of its rows holds any text")
    order = sorted(sizes, key=_place)
    share = np.cumsum([0, *(sizes[key] for key in order)]) / sum(sizes.values())

    def end(start: int, fraction: float, left: int) -> int:
        """The row after those from `start` on that make up the fraction."""
        if not fraction:  # that split was given
            return start
        wanted = max(int(np.searchsorted(share, share[start] + fraction)), start + 1)
        return max(start, min(wanted, len(order) - left))

    def bound(row: int) -> float:
        return _place(order[row]) if row < len(order) else 1.0

    test = end(0, test_fraction, left=2)
    return Bounds(bound(test), bound(end(test, validation_fraction, left=1)))


def _fit_processor(
    task: Task[Any],
    rows: ray.data.Dataset,
    index: _Index,
    bounds: Bounds,
    folder: Folder,
    progress: Progress,
) -> str:
    """Fit the processor to the training rows of lowest key and write it; returns its file."""
    train = sorted(
        {
            key: size
            for key, size in zip(index.keys, index.bytes, strict=True)
            if bounds.split(key) == "train"
        }.items()
    )
    if not train:
        raise UserError("data.source holds too little: nothing is left for the training split")
    within = int(np.searchsorted(np.cumsum([size for _, size in train]), SAMPLE_BYTES))
    last = train[min(within, len(train) - 1)][0]
    progress.start("fitting the tokenizer", total=None, unit="")
    chosen = rows.map_batches(partial(_sample, bounds=bounds, last=last), batch_size=None)
    sample = {row["key"]: {name: row[name] for name in task.columns} for row in chosen.iter_rows()}
    processor = task.fit_processor(sample[key] for key in sorted(sample))
    folder.write(processor.file_name, processor.to_bytes())
    progress.finish()
    return str(processor.file_name)


def _sample(batch: Table, bounds: Bounds, last: str) -> Table:
    """The training rows with a key up to `last`."""
    chosen = [bool(k) and k <= last and bounds.split(k) == "train" for k in batch["key"]]
    return {name: column[chosen] for name, column in batch.items()}


def _write(
    task: Task[Any],
    rows: ray.data.Dataset,
    bounds: Bounds,
    processor_file: str,
    folder: Folder,
    num_buckets: int,
    index: _Index,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Encode bucket by bucket; returns what each holds, in order of buckets."""
    parts = {part["bucket"]: part for part in _finished_parts(folder)}
    buckets = [int(key[:16], 16) % num_buckets for key in index.keys]
    progress.start("encoding", total=len(buckets), unit="rows")
    progress.advance(sum(bucket in parts for bucket in buckets))
    if len(parts) < len(set(buckets)):
        settings = {
            "task": task,
            "bounds": bounds,
            "processor_file": processor_file,
            "folder_uri": folder.uri,
        }
        groups = rows.groupby("bucket", num_partitions=num_buckets)
        written = groups.map_groups(
            _write_bucket,  # type: ignore[arg-type]  # Ray's type knows nothing of fn_kwargs
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
    """Turn all rows of a bucket into one shard of each split; the part file is written last."""
    folder = Folder(folder_uri)
    bucket = int(group["bucket"][0])
    if bucket < 0:  # the empty and the bad rows
        return {"part": np.array([], dtype=str)}
    part_file = f"part-{bucket:05d}.json"
    if folder.exists(part_file):  # by a run that was interrupted
        return {"part": np.array([folder.read(part_file).decode()])}
    processor = task.load_processor(folder.read(processor_file))
    unique: dict[str, int] = {}
    for i in np.argsort(group["key"], kind="stable"):
        unique.setdefault(group["key"][i], i)
    shards = {}
    for number, split in enumerate(SPLITS):
        chosen = [i for key, i in unique.items() if bounds.split(key) == split]
        rows = [{name: group[name][i] for name in task.columns} for i in chosen]
        arrays = shuffled(task.encode(rows, processor), seed=(bucket, number))
        if len(next(iter(arrays.values()))):
            name = f"{split}-{bucket:05d}.arrow"
            shards[split] = write_shard(folder, name, arrays).model_dump()
    part = {
        "bucket": bucket,
        "rows": len(group["key"]),
        "duplicates": len(group["key"]) - len(unique),
        "shards": shards,
    }
    folder.write(part_file, json.dumps(part).encode())
    return {"part": np.array([json.dumps(part)])}


def shuffled(arrays: Arrays, seed: tuple[int, ...]) -> Arrays:
    """The same rows in an order that the seed decides."""
    count = len(next(iter(arrays.values())))
    order = np.random.default_rng(seed).permutation(count)
    return {name: array[order] for name, array in arrays.items()}


def _check_splits(splits: dict[Split, list[Shard]], job: Job) -> None:
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"data.source = {job.data.source}: the {split} split holds not one sample with "
                f"model.max_seq_len = {job.model.max_seq_len}: give more data, a larger "
                f"data.{'test' if split == 'train' else split}_fraction or a smaller "
                f"model.max_seq_len"
            )


def _place(key: str) -> float:
    return int(key[HASH // 2 : HASH], 16) / 2.0**64


def _num_buckets(source_bytes: int) -> int:
    wanted = min(PARALLEL_BUCKETS, source_bytes // MIN_BUCKET_BYTES)
    return max(1, wanted, -(-source_bytes // MAX_BUCKET_BYTES))
