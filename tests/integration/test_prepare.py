"""Preparation on Ray Data: all formats, bad rows, and shards that do not depend on its course."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from orchestrator.data.shards import ShardReader
from orchestrator.errors import UserError
from orchestrator.infer.trained_model import load_processor
from orchestrator.job.job import Job
from orchestrator.prepare import buckets, stage
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData
from tests.integration.conftest import Silent, tiny_job, write_texts

pytestmark = pytest.mark.usefixtures("connected")


def run_prepare(folder: Path, **changes: Any) -> PreparedData:
    job = Job.model_validate(tiny_job(folder, **changes))
    run = Run(job)
    return stage.prepare(job, run.files, run.prepare_folder(), Silent())


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(write_texts(folder / "texts").glob("*.txt"))]


def write_as(kind: str, path: Path, rows: list[str]) -> None:
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in rows))
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *[["1", text] for text in rows]])
    else:
        table = pa.table({"id": [1] * len(rows), "text": rows})
        pyarrow.parquet.write_table(table, path, row_group_size=7)


@pytest.fixture(scope="module")
def from_txt(tmp_path_factory: pytest.TempPathFactory, connected: Any) -> PreparedData:
    folder = tmp_path_factory.mktemp("txt")
    write_texts(folder / "data")
    return run_prepare(folder)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_same_rows_make_the_same_shards_in_every_format(
    kind: str, tmp_path: Path, from_txt: PreparedData
) -> None:
    (tmp_path / "data").mkdir()
    write_as(kind, tmp_path / "data" / f"rows.{kind}", texts(tmp_path))
    assert run_prepare(tmp_path).splits == from_txt.splits


def test_documents_come_back_whole_from_the_blocks(from_txt: PreparedData) -> None:
    job = Job.model_validate(tiny_job(Path("/nowhere")))
    processor: Any = load_processor(job.build_task(), from_txt)
    reader = ShardReader(from_txt, "train")
    blocks = reader.read(np.arange(reader.num_rows))["tokens"]
    joined = " ".join(processor.decode(block.tolist()) for block in blocks)
    assert "the the" in joined
    assert (blocks == processor.end_token).any()


def test_duplicate_and_empty_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = texts(tmp_path)
    (tmp_path / "data").mkdir()
    # The second text is the first one, decomposed: NFC makes them equal.
    rows += [rows[0], "Zo\u00eb " * 100, "Zoe\u0308 " * 100, "", "  \n"]
    write_as("jsonl", tmp_path / "data" / "rows.jsonl", rows)
    prepared = run_prepare(tmp_path)
    counts = {"kept": 121, "empty": 2, "duplicate": 2, "left out": 0, "quarantined": 0}
    assert prepared.documents == counts


def test_bad_rows_are_quarantined_with_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "rows.jsonl"
    write_as("jsonl", path, texts(tmp_path))
    with open(path, "ab") as file:
        file.write(b'{"text": 5}\n\xff\xfe\n{"id": 3}\n{"text": "cut\n')
    prepared = run_prepare(tmp_path)
    assert prepared.documents["quarantined"] == 4
    assert "4 rows set aside" in prepared.summary
    (notice,) = prepared.notices
    assert notice.startswith("4 of 124 rows (3.2 %) are set aside") and f"{path}, row 121" in notice
    lines = prepared.folder.read("quarantine.jsonl").decode().splitlines()
    bad = [json.loads(line) for line in lines]
    assert [row["row"] for row in bad] == [121, 122, 123, 124]
    assert all(row["file"] == str(path) and row["reason"] for row in bad)


def test_too_many_bad_rows_fail_naming_the_first(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + "oops\n" * 5)
    message = rf"5 of 6 rows .*max_bad_rows = 4.*{path}, row 2"
    with pytest.raises(UserError, match=message):
        run_prepare(tmp_path, data__max_bad_rows=4)


def test_too_little_text_is_reported_in_numbers(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "short.txt").write_text("only this")
    with pytest.raises(UserError, match=r"data\.source") as error:
        run_prepare(tmp_path)
    assert "\n" not in str(error.value)


def test_the_shards_do_not_depend_on_the_blocks_that_were_read(
    tmp_path: Path, from_txt: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "PARALLEL_BUCKETS", 3)
    write_texts(tmp_path / "data")
    assert run_prepare(tmp_path).splits == from_txt.splits


def test_an_interrupted_preparation_continues_with_the_missing_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MIN_BUCKET_BYTES", 10_000)  # several buckets
    write_texts(tmp_path / "data")
    whole = run_prepare(tmp_path)
    folder = whole.folder.local_path
    assert folder is not None and len(list(folder.glob("part-*.json"))) > 2
    for name in ("manifest.json", "part-00001.json", "train-00001.arrow"):
        (folder / name).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-00000.*")}
    again = run_prepare(tmp_path)
    assert again.splits == whole.splits
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*-00000.*")} == before


def test_sources_may_be_deleted_after_preparation(tmp_path: Path) -> None:
    write_texts(tmp_path / "data")
    prepared = run_prepare(tmp_path)
    shutil.rmtree(tmp_path / "data")
    run = Run(Job.model_validate(tiny_job(tmp_path)))
    assert run.prepare_folder().uri == prepared.folder.uri


def labelled(folder: Path, labels: list[str]) -> dict[str, Any]:
    """A job on texts whose labels alternate through `labels`."""
    (folder / "data").mkdir()
    rows = [
        {"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(texts(folder))
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "data" / "rows.jsonl").write_text("".join(lines))
    return {"task": "text_classification"}


def test_a_label_with_one_row_is_a_class_in_any_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAMPLE_BYTES", 1000)
    labels = [f"class {i}" for i in range(20)]
    prepared = run_prepare(tmp_path, **labelled(tmp_path, labels))
    job = Job.model_validate(tiny_job(tmp_path, task="text_classification"))
    processor: Any = load_processor(job.build_task(), prepared)
    assert processor.labels == sorted(labels)


def test_rows_without_a_label_are_counted_by_this_reason(tmp_path: Path) -> None:
    labels = ["a", "b", "", "b", "NaN", "a"]
    prepared = run_prepare(tmp_path, **labelled(tmp_path, labels))
    assert prepared.documents["left out"] == 40 and prepared.documents["quarantined"] == 0
    assert "40 of 120 rows (33 %) are left out: no label" in prepared.notices[0]


def test_a_single_class_ends_the_stage_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training rows have the label 'spam'"):
        run_prepare(tmp_path, **labelled(tmp_path, ["spam"]))


def test_test_rows_that_are_also_training_rows_are_reported(tmp_path: Path) -> None:
    settings = labelled(tmp_path, ["a", "b"])
    copy = tmp_path / "copy.jsonl"
    shutil.copy(tmp_path / "data" / "rows.jsonl", copy)
    prepared = run_prepare(tmp_path, **settings, data__test_source=str(copy))
    (repeated,) = [notice for notice in prepared.notices if "repeat" in notice]
    assert "of 120 test rows" in repeated and "repeat the text of a training row" in repeated
