"""Raw files into encoded, shuffled shards, on Ray Data.

Every row gets a key, the hash of its cleaned content, and all else follows from keys: duplicates
share one, the split is one half of it, the bucket the other. A bucket becomes one shard of each
split, so that the shards depend on the data alone, never on how many machines there were or in
which order they worked, and a bucket that is finished is not done again.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.data
from ray.data.context import ShuffleStrategy
from ray.exceptions import RayError

from orchestrator.cluster.connection import raised_by_user_code
from orchestrator.data.arrays import Arrays
from orchestrator.data.shards import write_shard
from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import total_bytes
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.prepare.cleaning import read_cleaned
from orchestrator.prepare.index import (
    GIVEN,
    HASH,
    INDEXED,
    Index,
    hidden_splits,
    quarantine,
    record,
    share,
)
from orchestrator.progress import Progress
from orchestrator.storage.artifact import SPLITS, PreparedData, Shard, Split
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

MIN_BUCKET_BYTES = 2 << 20  # below this a bucket is not worth a task
MAX_BUCKET_BYTES = 64 << 20  # one task holds a bucket in memory
PARALLEL_BUCKETS = 8  # as many as that even where fewer would hold the data
SAMPLE_BYTES = 8 << 20  # of training text that the processor is fitted to
READ_BYTES = 4 << 20  # of input files that one task reads

Table = dict[str, npt.NDArray[Any]]

TOLD_IF_CUT = 0.01  # of the rows
HEAVIEST = 16  # times the usual row: as much does a longer one weigh, where splits are cut


@dataclass(frozen=True)
class Bounds:
    """Where the splits end: a row's place, from 0 to 1, is the second half of its hash."""

    test: float
    validation: float
    hidden: tuple[Split, ...] = ()  # given, but without labels: nobody learns or is tested on them

    def split(self, key: str) -> Split | None:
        if len(key) > HASH:
            given = GIVEN[key[HASH:]]
            return None if given in self.hidden else given
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
    index = Index(rows.select_columns(INDEXED).iter_batches(batch_size=None))
    quarantine(index, job, folder)
    if not index.keys:
        raise UserError(f"data.source = {_named(job)}: {index.why_nothing()}")
    hidden, told = hidden_splits(index, files)
    bounds = split_bounds(
        index,
        0.0 if index.has("v", hidden) else job.data.validation_fraction,
        0.0 if index.has("t", hidden) else job.data.test_fraction,
        hidden,
    )

    processor_file, found = _fit_processor(task, rows, index, bounds, folder, progress)
    parts = _write(task, rows, bounds, processor_file, folder, num_buckets, index, progress)

    splits: dict[Split, list[Shard]] = {
        split: [Shard(**part["shards"][split]) for part in parts if split in part["shards"]]
        for split in SPLITS
    }
    _check_splits(splits, job)
    duplicates = sum(part["duplicates"] for part in parts)
    kept = len(index.keys) - duplicates
    counts = {split: sum(shard.rows for shard in shards) for split, shards in splits.items()}
    notices = [*notes, *index.notices(), *told, *found, *cut_rows(parts, counts, job)]
    aside = len(index.bad) + len(index.left_out)
    return PreparedData(
        folder=folder,
        seconds=time.monotonic() - started,
        summary=f"{kept:,} documents, {counts['train']:,} training samples"
        + (f", {aside:,} rows set aside" if aside else ""),
        notices=notices,
        processor=processor_file,
        splits=splits,
        documents={
            "kept": kept,
            "empty": index.empty,
            "duplicate": duplicates,
            "left out": len(index.left_out),
            "quarantined": len(index.bad),
        },
        source_bytes=source_bytes,
    ).commit()


def _named(job: Job) -> str:
    source = job.data.source
    return source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)


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
    try:
        for bundle in reading.iter_internal_ref_bundles():
            references += list(bundle.block_refs)
            progress.advance(len(files) / blocks)
    except RayError as error:  # of a file of which nobody knows how much is lost
        raise raised_by_user_code(error) or error from error
    finally:
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
            records.append(record(row, task, num_buckets, place, code))
            if len(records) == 4096:
                yield _table(records)
                records = []
        if records:
            yield _table(records)


def _file(content: dict[str, Any]) -> SourceFile:
    beside = tuple(_file(each) for each in content.pop("beside"))
    return SourceFile(**content, beside=beside)


def _table(records: list[dict[str, Any]]) -> Table:
    """Columns. Texts and bytes are objects, since numpy's own would pad all to the longest one and
    lose NULs at the ends."""
    return {
        name: np.array(
            [r[name] for r in records], dtype=object if isinstance(v, str | bytes) else None
        )
        for name, v in records[0].items()
    }


def split_bounds(
    index: Index,
    validation_fraction: float,
    test_fraction: float,
    hidden: tuple[Split, ...] = (),
) -> Bounds:
    """Bounds that give test and validation at least their share of the bytes, and one row each.

    Of three rows or more, a row is also left for each split that comes after. A row that is much
    longer than usual weighs no more than HEAVIEST of them: it would move all others otherwise.
    """
    sizes: dict[str, float] = dict(
        zip(index.keys, index.bytes, strict=True)
    )  # a duplicate counts once
    sizes = {key: size for key, size in sizes.items() if len(key) == HASH}
    if not sizes:
        raise UserError("data.source: not one of its rows is for training: all are of given splits")
    most = HEAVIEST * statistics.median(sizes.values())
    sizes = {key: min(size, most) for key, size in sizes.items()}
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
    return Bounds(bound(test), bound(end(test, validation_fraction, left=1)), hidden)


def _fit_processor(
    task: Task[Any],
    rows: ray.data.Dataset,
    index: Index,
    bounds: Bounds,
    folder: Folder,
    progress: Progress,
) -> tuple[str, list[str]]:
    """Fit the processor and write it; returns its file, and what the user should know of the rows.

    It is fitted to the training rows of lowest key, and one more of each value that they lack.
    """
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
    split_of = [bounds.split(key) for key in index.keys]
    further = index.first_of_each_value(split_of, after=last)
    sampled = partial(_sample, bounds=bounds, last=last, further=further)
    chosen = rows.map_batches(sampled, batch_size=None)
    sample = {row["key"]: {name: row[name] for name in task.columns} for row in chosen.iter_rows()}
    processor = task.fit_processor(sample[key] for key in sorted(sample))
    folder.write(processor.file_name, processor.to_bytes())
    progress.finish()
    found = index.repeats(split_of, task)
    if task.counted is not None:
        found += task.look(index.values_by_split(split_of), processor)
    return str(processor.file_name), found


def _sample(batch: Table, bounds: Bounds, last: str, further: set[str]) -> Table:
    """The training rows with a key up to `last`, or one of those further ones."""
    chosen = [
        bool(k) and (k <= last or k in further) and bounds.split(k) == "train" for k in batch["key"]
    ]
    return {name: column[chosen] for name, column in batch.items()}


def _write(
    task: Task[Any],
    rows: ray.data.Dataset,
    bounds: Bounds,
    processor_file: str,
    folder: Folder,
    num_buckets: int,
    index: Index,
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
    """The same rows in an order that the seed decides."""
    count = len(next(iter(arrays.values())))
    order = np.random.default_rng(seed).permutation(count)
    return {name: array[order] for name, array in arrays.items()}


def _full(arrays: Arrays, rows: int) -> dict[str, int]:
    """How many rows fill the room that there is for their tokens, by column; none where a row may
    become several samples, and nothing of it is lost."""
    if len(next(iter(arrays.values()))) != rows:
        return {}
    return {
        name: int((arrays[f"{name}_length"] == arrays[name].shape[1]).sum())
        for name in arrays
        if f"{name}_length" in arrays
    }


def cut_rows(parts: list[dict[str, Any]], rows: dict[Split, int], job: Job) -> list[str]:
    """What to tell of rows that fill `model.max_seq_len`, where these are many enough to matter."""
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
