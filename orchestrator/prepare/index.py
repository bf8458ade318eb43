"""The index of all rows: key, size and value, and the reason why a row is not kept."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from orchestrator.data.reading import BadRow, Note
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.prepare.keys import GIVEN
from orchestrator.storage.artifact import Split
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

BAD_SHARE = 0.01  # of a split's rows may be bad, or
BAD_ROWS, BAD_SHARE_OF_FEW = 10, 0.1  # so many rows, up to this larger share

Splits = Sequence[Split | None]  # the split of each kept row, in the index's order


class Index:
    """The driver's knowledge of the rows: keys, sizes and values of kept rows, places and reasons
    of the others. Batches hold the columns of `record`, at least those in INDEXED."""

    def __init__(self, batches: Iterable[dict[str, Any]]) -> None:
        self.keys: list[str] = []
        self.bytes: list[int] = []
        self.values: list[str] = []
        self.bad: list[BadRow] = []
        self.left_out: list[BadRow] = []
        self.notes: list[Note] = []
        self.empty = 0
        self.read: Counter[str] = Counter()  # the number of rows per code of GIVEN, and without one
        self.bad_of: Counter[str] = Counter()
        twins = []
        for batch in batches:
            self._add(batch)
            twins.append(batch["twin"][batch["key"] != ""])
        self.twins = np.concatenate(twins) if twins else np.empty(0, dtype=np.int64)

    def _add(self, batch: dict[str, Any]) -> None:
        kept = batch["key"] != ""
        self.keys += batch["key"][kept].tolist()
        self.bytes += batch["bytes"][kept].tolist()
        self.values += batch["value"][kept].tolist()
        others = (batch[name][~kept] for name in ("code", "aside", "note"))
        for code, aside, note in zip(*others, strict=True):
            if note:
                self.notes.append(Note(**json.loads(note)))
                continue
            self.read[code] += 1
            if not aside:
                self.empty += 1
                continue
            row = BadRow(**json.loads(aside))
            (self.bad if row.is_fault else self.left_out).append(row)
            self.bad_of[code] += row.is_fault
        self.read.update(batch["code"][kept].tolist())

    def has(self, code: str, hidden: Sequence[Split] = ()) -> bool:
        """Whether there are usable rows that were given for this split."""
        return self.read[code] > 0 and GIVEN[code] not in hidden

    def why_nothing(self) -> str:
        """The reason why no row is kept."""
        aside = sorted([*self.bad, *self.left_out], key=lambda row: (row.file, row.row))
        if not self.read.total():
            return "holds no rows"
        if not aside:
            return "not one of its rows holds any text"
        return f"not one of its rows can be used; the first: {aside[0]}"

    def notices(self) -> list[str]:
        """Notices for the user on files and on rows that are not kept."""
        texts: dict[str, list[str]] = {}
        for note in sorted(self.notes, key=lambda note: note.file):
            texts.setdefault(note.text, []).append(note.file)
        notices = [
            f"{files[0]}{f' and {len(files) - 1:,} more' if files[1:] else ''}: {text}"
            for text, files in texts.items()
        ]
        total = self.read.total()
        if self.bad:
            first = min(self.bad, key=lambda row: (row.file, row.row))
            notices.append(
                f"{share(len(self.bad), total, 'rows')} are set aside; the first: {first}"
            )
        if self.empty:
            notices.append(f"{share(self.empty, total, 'rows')} are left out: nothing is in them")
        by_reason: dict[str, list[BadRow]] = {}
        for row in sorted(self.left_out, key=lambda row: (row.file, row.row)):
            by_reason.setdefault(row.reason, []).append(row)
        for reason, rows in by_reason.items():
            where = f"{rows[0].file}, row {rows[0].row}"
            notices.append(
                f"{share(len(rows), total, 'rows')} are left out: {reason} ({where} first)"
            )
        return notices

    def first_of_each_value(self, splits: Splits, after: str) -> set[str]:
        """For each value that no training row up to the key `after` has, the key of a row that has
        it."""
        known: set[str] = set()
        later: dict[str, str] = {}
        for key, value, split in zip(self.keys, self.values, splits, strict=True):
            if split != "train" or not value:
                continue
            if key <= after:
                known.add(value)
            else:
                later[value] = min(later.get(value, key), key)
        return {key for value, key in later.items() if value not in known}

    def values_by_split(self, splits: Splits) -> dict[Split, Counter[str]]:
        """The count of each value in each split, without duplicates."""
        counts: dict[Split, Counter[str]] = {"train": Counter(), "validation": Counter()}
        counts["test"] = Counter()
        seen: set[str] = set()
        for key, value, split in zip(self.keys, self.values, splits, strict=True):
            if split is not None and key not in seen:
                seen.add(key)
                counts[split][value] += 1
        return counts

    def repeats(self, splits: Splits, task: Task[Any]) -> list[str]:
        """Notices on validation and test rows that look like a training row to the model."""
        of = np.array([split or "" for split in splits])
        known = np.unique(self.twins[of == "train"])
        notices = []
        for split in ("validation", "test"):
            twins = self.twins[of == split]
            count = int(np.isin(twins, known).sum())
            if count:
                what = " and ".join(task.inputs)
                rows = share(count, len(twins), f"{split} rows")
                notices.append(
                    f"{rows} repeat the {what} of a training row: what they score is known"
                )
        return notices


def share(count: int, total: int, of: str) -> str:
    """`60 of 400 rows (15 %)`."""
    percent = 100 * count / max(total, 1)
    shown = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
    return f"{count:,} of {total:,} {of} ({shown} %)"


def quarantine(index: Index, job: Job, folder: Folder) -> None:
    """Write the places and reasons of rows that are not kept beside the data; too many bad rows end
    the stage.

    Raises:
        UserError: naming the first.
    """
    rows = sorted([*index.bad, *index.left_out], key=lambda row: (row.file, row.row))
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    folder.write("quarantine.jsonl", "".join(lines).encode())
    limit = job.data.max_bad_rows
    if limit is not None:
        counts = {"rows": (len(index.bad), index.read.total(), float(limit))}
    else:
        counts = {
            f"{GIVEN.get(code, 'source')} rows": (index.bad_of[code], total, most_bad_rows(total))
            for code, total in index.read.items()
        }
    for what, (bad, total, most) in counts.items():
        if bad > most:
            first = min(index.bad, key=lambda row: (row.file, row.row))
            allowed = f"data.max_bad_rows = {limit}" if limit is not None else f"{int(most)}"
            raise UserError(
                f"{share(bad, total, what)} cannot be read, more than {allowed}; the first: "
                f"{first} (all of them: {folder}/quarantine.jsonl): mend them, or raise "
                f"data.max_bad_rows"
            )


def most_bad_rows(total: int) -> float:
    """The default limit of bad rows of a split."""
    return max(BAD_SHARE * total, min(BAD_ROWS, BAD_SHARE_OF_FEW * total))
