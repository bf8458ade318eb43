"""The stage `prepare`: raw files into encoded, shuffled shards, on Ray Data.

Read it in this order: `cleaning.py` (rows), `keys.py`, `index.py` (what the driver knows of all
rows), `splits.py`, `buckets.py` (shards), and this file, which calls them.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import ray.data
from ray.data.context import ShuffleStrategy
from ray.exceptions import RayError

from orchestrator.cluster.connection import raised_by_user_code
from orchestrator.cluster.waiting import waits_shown
from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import total_bytes
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.prepare.buckets import PARALLEL_BUCKETS, count_buckets, cut_rows, write_buckets
from orchestrator.prepare.cleaning import read_cleaned
from orchestrator.prepare.index import Index, quarantine
from orchestrator.prepare.keys import INDEXED, Table, record, table_of
from orchestrator.prepare.splits import Bounds, hidden_splits, split_bounds
from orchestrator.progress import Progress
from orchestrator.storage.artifact import SPLITS, PreparedData, Shard, Split
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

SAMPLE_BYTES = 8 << 20  # of training text that the processor is fitted to
READ_BYTES = 4 << 20  # of input files that one task reads
MOST_RECORDS = 4096  # in one block


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
    with waits_shown(progress, {"CPU": 1.0}):  # the tasks of Ray Data
        return _prepare(job, files, folder, progress, notes)


def _prepare(
    job: Job,
    files: list[SourceFile],
    folder: Folder,
    progress: Progress,
    notes: Sequence[str],
) -> PreparedData:
    started = time.monotonic()
    task = job.build_task()
    ray.data.DataContext.get_current().shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    source_bytes = total_bytes(files)
    num_buckets = count_buckets(source_bytes)

    rows = _read(task, files, num_buckets, progress)
    index = Index(rows.select_columns(INDEXED).iter_batches(batch_size=None))
    quarantine(index, job, folder)
    if not index.keys:
        raise UserError(f"data.source = {_named(job)}: {index.why_nothing()}")
    hidden, split_notices = hidden_splits(index, files)
    bounds = split_bounds(
        index,
        0.0 if index.has("v", hidden) else job.data.validation_fraction,
        0.0 if index.has("t", hidden) else job.data.test_fraction,
        hidden,
    )

    processor_file, value_notices = _fit_processor(task, rows, index, bounds, folder, progress)
    parts = write_buckets(task, rows, bounds, processor_file, folder, num_buckets, index, progress)

    splits: dict[Split, list[Shard]] = {
        split: [Shard(**part["shards"][split]) for part in parts if split in part["shards"]]
        for split in SPLITS
    }
    _check_splits(splits, job)
    duplicates = sum(part["duplicates"] for part in parts)
    kept = len(index.keys) - duplicates
    counts = {split: sum(shard.rows for shard in shards) for split, shards in splits.items()}
    notices = [
        *notes,
        *index.notices(),
        *split_notices,
        *value_notices,
        *cut_rows(parts, counts, job),
    ]
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
            if len(records) == MOST_RECORDS:
                yield table_of(records)
                records = []
        if records:
            yield table_of(records)


def _file(content: dict[str, Any]) -> SourceFile:
    beside = tuple(_file(each) for each in content.pop("beside"))
    return SourceFile(**content, beside=beside)


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
    notices = index.repeats(split_of, task)
    if task.counted is not None:
        notices += task.look(index.values_by_split(split_of), processor)
    return str(processor.file_name), notices


def _sample(batch: Table, bounds: Bounds, last: str, further: set[str]) -> Table:
    """The training rows with a key up to `last`, or one of those further ones."""
    chosen = [
        bool(k) and (k <= last or k in further) and bounds.split(k) == "train" for k in batch["key"]
    ]
    return {name: column[chosen] for name, column in batch.items()}


def _check_splits(splits: dict[Split, list[Shard]], job: Job) -> None:
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"data.source = {job.data.source}: the {split} split holds not one sample with "
                f"model.max_seq_len = {job.model.max_seq_len}: give more data, a larger "
                f"data.{'test' if split == 'train' else split}_fraction or a smaller "
                f"model.max_seq_len"
            )
