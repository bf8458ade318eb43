"""Which preparation serves a job, and what is told of it."""

import os
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return Job.model_validate(
        {"name": "a", "task": "language_modelling", "data": {"source": "data.txt"}}
    )


def prepare(folder: Folder, source_bytes: int) -> None:
    PreparedData(
        folder=folder,
        seconds=1,
        processor="tokenizer.json",
        splits={},
        documents={},
        source_bytes=source_bytes,
        summary="",
    ).commit()


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_the_newest_preparation_serves_where_the_data_has_moved_on(newest: int, job: Job) -> None:
    folders = []
    for i in range(3):
        Path("data.txt").write_text("some text " * (i + 1))
        folder = Run(job).prepare_folder()
        prepare(folder, i + 1)
        os.utime(f"{folder}/manifest.json", (1000 + (i == newest), 1000 + (i == newest)))
        folders.append(folder.uri)
    assert len(set(folders)) == 3
    assert Run(job).notes == []
    Path("data.txt").unlink()
    run = Run(job)
    assert run.prepare_folder().uri == folders[newest]
    assert run._source_bytes() == newest + 1
    (told,) = run.notes
    assert "data.txt: no such file" in told and "1970-01-01" in told
    assert Path(folders[newest]).name in told


def test_data_that_is_gone_and_was_never_prepared_is_an_error(job: Job) -> None:
    with pytest.raises(UserError, match="no such file"):
        Run(job)


def test_what_lies_beside_the_data_is_told_and_the_storage_is_not_read(job: Job) -> None:
    Path("d").mkdir()
    Path("d/a.txt").write_text("x")
    Path("d/b.xlsx").write_text("x")
    Path("d/runs/a").mkdir(parents=True)
    Path("d/runs/a/c.txt").write_text("x")
    run = Run(job.override({"data.source": "d", "storage": "d/runs"}))
    assert [Path(file.uri).name for file in run.files] == ["a.txt"]
    assert run.notes == ["d/: 1 file is not read: b.xlsx"]
