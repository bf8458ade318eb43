"""Inputs of a run that are moved, copied by Ray, or gone after the run has begun."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.job.init_from import RECORD
from orchestrator.job.job import Job
from orchestrator.pipeline import check_inputs
from orchestrator.progress import Stage
from orchestrator.run import Run
from orchestrator.storage.folder import MANIFEST, Folder
from orchestrator.storage.submitted import find_storage
from orchestrator.train.stage import made_by
from orchestrator.train.worker import _require_weights
from tests.unit.test_init_from import saved
from tests.unit.toy import prepare_counting

STAGES: tuple[Stage, ...] = ("prepare", "tune", "train", "evaluate")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def a_job(init_from: str = "weights", **changes: Any) -> Job:
    settings = {"name": "a", "task": "language_modelling", "data": {"source": "data"}}
    return Job.model_validate({**settings, "model": {"init_from": init_from}, **changes})


def write_inputs(folder: Path, text: str = "the cat sat on the mat\n\n") -> None:
    saved(folder / "weights")
    (folder / "data").mkdir()
    (folder / "data/a.txt").write_text(text * 50)


def begin(run: Run) -> None:
    """As a command does that begins to run stages."""
    with run.session(["train", "job.yaml"], "train", lambda error: 0):
        pass


def folders(run: Run) -> list[str]:
    chosen = run.chosen_job()
    assert chosen is not None
    return [run.prepare_folder().name, run.train_folder(chosen).name]


# Weights that are gone


def test_a_run_keeps_its_folders_after_its_weights_are_gone(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    run = Run(a_job())
    begin(run)
    before = folders(run), run.job.model
    shutil.rmtree(tmp_path / "weights")
    again = Run(a_job())
    assert again.job.weights is not None and again.job.weights.gone
    assert (folders(again), again.job.model) == before
    begin(again)  # must not forget what it has not seen
    assert folders(Run(a_job())) == before[0]


def test_weights_are_needed_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    run = Run(a_job())
    begin(run)
    prepared = prepare_counting(run.prepare_folder())
    chosen = run.chosen_job()
    assert chosen is not None and prepared.folder.uri == run.prepare_folder().uri
    checkpoints = run.train_folder(chosen) / "checkpoints"
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(UserError, match=r"model\.init_from: .*weights has no config\.json"):
        check_inputs(Run(a_job()))
    (checkpoints / "step-00000003").write("model.safetensors", b"half")
    with pytest.raises(UserError, match=r"model\.init_from: .*weights has no config\.json"):
        check_inputs(Run(a_job()))
    (checkpoints / "step-00000003").write(MANIFEST, b"{}")
    check_inputs(Run(a_job()))


def test_another_run_has_no_use_for_the_record(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    begin(Run(a_job()))
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(ValidationError, match=r"has no config\.json"):
        a_job(name="b")
    with pytest.raises(ValidationError, match=r"has no config\.json"):
        a_job("others")


def test_weights_that_are_there_but_damaged_are_not_replaced_by_the_record(
    tmp_path: Path,
) -> None:
    write_inputs(tmp_path)
    begin(Run(a_job()))
    (tmp_path / "weights/config.json").write_text("{")
    with pytest.raises(ValidationError, match=r"config\.json"):
        a_job()


def test_weights_that_were_replaced_are_recorded_anew(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    first = Run(a_job())
    begin(first)
    shutil.rmtree(tmp_path / "weights")
    saved(tmp_path / "weights", d_model=48, num_heads=3)
    second = Run(a_job())
    assert folders(second) != folders(first)
    begin(second)
    recorded = json.loads((tmp_path / "runs/a" / RECORD).read_text())
    assert [each["architecture"]["d_model"] for each in recorded.values()] == [48]


# Weights that a worker's node lacks


def test_a_node_without_the_weights_is_named(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    weights = a_job().weights
    assert weights is not None
    _require_weights(weights)
    os.utime(tmp_path / "weights/model.safetensors", (0, 0))  # a copy of another time
    _require_weights(weights)
    with (tmp_path / "weights/model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"model\.safetensors has another size on node "):
        _require_weights(weights)
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(UserError, match="is missing on node ") as raised:
        _require_weights(weights)
    assert socket.gethostname() in str(raised.value) and "\n" not in str(raised.value)


# Inputs in the working directory of a submitted job


def submit(session: Path, monkeypatch: pytest.MonkeyPatch, text: str = "the cat\n\n") -> Run:
    """The run of a job in Ray's copy of the working directory."""
    copy = session / "runtime_resources/working_dir_files/_ray_pkg_0a1b"
    copy.mkdir(parents=True)
    write_inputs(copy, text)
    monkeypatch.chdir(copy)
    return Run(a_job())


def test_the_next_submission_continues_the_run_of_the_last(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submit(tmp_path / "session_1", monkeypatch)
    assert first.folder.uri == str(home / "runs/a")
    begin(first)
    prepared = prepare_counting(first.prepare_folder())
    before, made = folders(first), made_by(first.job, prepared)
    shutil.rmtree(tmp_path / "session_1")
    second = submit(tmp_path / "session_2", monkeypatch)
    assert second.job.model.init_from == str(Path.cwd() / "weights")  # where workers find it
    assert folders(second) == before
    assert made_by(second.job, prepared) == made  # else its checkpoints would be another training's
    changed = submit(tmp_path / "session_3", monkeypatch, "the dog\n\n")
    assert folders(changed)[0] != before[0]
    with (Path.cwd() / "weights/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert Run(a_job()).job.model_files != second.job.model_files


def test_other_paths_are_named_as_they_are(tmp_path: Path, home: Path) -> None:
    copy = tmp_path / "working_dir_files/_ray_pkg_0a1b"
    assert find_storage("runs", tmp_path).uri == str(tmp_path / "runs")
    assert find_storage("runs", copy).uri == str(home / "runs")
    assert find_storage("/data/runs", copy).uri == "/data/runs"
    assert find_storage("s3://bucket/runs", copy).uri == "s3://bucket/runs"
    assert isinstance(find_storage("~/runs", copy), Folder)
