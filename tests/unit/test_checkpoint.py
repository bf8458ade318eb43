"""Checkpoints: what is saved is restored to the bit, and what is damaged is passed over."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import safetensors.torch
import torch

from orchestrator.errors import StageError, UserError
from orchestrator.infer.trained_model import load_weights
from orchestrator.job.sections import TrainConfig
from orchestrator.learn import checkpoints as checkpoint_module
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.optimizer import (
    Optimizer,
    build_optimizers,
    optimizer_tensors,
    restore_optimizers,
)
from orchestrator.learn.snapshot import Snapshot, pack
from orchestrator.learn.world import World
from orchestrator.model.transformer import Transformer
from orchestrator.storage import files
from orchestrator.storage.artifact import ATTEMPT, Checkpoint
from orchestrator.storage.checkpoint_files import MODEL_FILE, OPTIMIZER_FILE
from orchestrator.storage.folder import MANIFEST, Folder, Parts
from orchestrator.tasks.task import Metric

LOSS = Metric("loss", "min")
Optimizers = list[Optimizer]
Tensors = dict[str, torch.Tensor]
Opener = Callable[..., Checkpoints]


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, kind: str, **fields: Any) -> None:
        self.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self if found == kind]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def open_again(tmp_path: Path, events: Events) -> Opener:
    """The folder's checkpoints as another process would see them."""

    def open_again(**settings: Any) -> Checkpoints:
        settings = {"metric": LOSS, "listener": events, "patience": 0.0, **settings}
        return Checkpoints(Folder(str(tmp_path / "checkpoints")), **settings)

    return open_again


@pytest.fixture
def checkpoints(open_again: Opener) -> Checkpoints:
    return open_again()


@pytest.fixture
def build(make_model) -> Callable[..., tuple[Transformer, Optimizers]]:
    def build(seed: int = 0, optimizer: str = "muon") -> tuple[Transformer, Optimizers]:
        model = make_model(seed=seed, norm="layernorm", positions="learned", tie_embeddings=False)
        return model, build_optimizers(model, TrainConfig(optimizer=optimizer), World())

    return build


def learn(model: Transformer, optimizers: Optimizers, steps: int) -> None:
    tokens = torch.arange(24).reshape(2, 12) % 11
    for _ in range(steps):
        model(tokens).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step(lr=0.01, taken=torch.tensor(True))
        model.zero_grad()


def taken(step: int, model: Transformer, optimizers: Optimizers, **fields: Any) -> Snapshot:
    tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizers)}
    return small(step, **tensors, **fields)


def small(step: int, **fields: Any) -> Snapshot:
    """A snapshot whose tensors tell its step; the later, the better, unless the test says."""
    plain: dict[str, Any] = {
        "total_steps": 100,
        "model": {"w": torch.full((3, 2), float(step))},
        "optimizer": {"step": torch.tensor(step)},
        "metrics": {"loss": 1.0 / step},
        "history": [{"step": float(step)}],
        "samples": f"{step:064x}",
        "precision": "fp32",
        "notices": [],
    }
    tensors = {name: pack((plain | fields)[name]) for name in ("model", "optimizer")}
    return Snapshot(step, **plain | fields | tensors)


def commit(checkpoints: Checkpoints, *snapshots: Snapshot) -> None:
    for snapshot in snapshots:
        checkpoints.save(snapshot)
        checkpoints.finish()


def steps(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.all()]


def restored_step(checkpoints: Checkpoints) -> int | None:
    """The step of the newest whole checkpoint, whose tensors must be those of that step."""
    saved = checkpoints.restore()
    if saved is None:
        return None
    expected = small(saved.checkpoint.step)
    for tensors, packed in ((saved.model, expected.model), (saved.optimizer, expected.optimizer)):
        assert b"".join(pack(tensors).parts) == b"".join(packed.parts)
    return saved.checkpoint.step


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )


def path_of(checkpoints: Checkpoints, step: int) -> Path:
    assert checkpoints.folder.local_path is not None
    return checkpoints.folder.local_path / f"step-{step:08d}"


def names_in(checkpoints: Checkpoints) -> set[str]:
    return set(checkpoints.folder.names())


# What comes back


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_restored_training_goes_on_to_the_bit(build, checkpoints, optimizer: str) -> None:
    model, optimizers = build(optimizer=optimizer)
    learn(model, optimizers, steps=3)
    commit(checkpoints, taken(3, model, optimizers))
    other, other_optimizers = build(seed=1, optimizer=optimizer)
    saved = checkpoints.restore()
    assert saved is not None and saved.checkpoint.step == 3
    other.load_state_dict(saved.model)
    restore_optimizers(other_optimizers, saved.optimizer)
    assert same(other.state_dict(), model.state_dict())
    learn(model, optimizers, steps=2)
    learn(other, other_optimizers, steps=2)
    assert same(other.state_dict(), model.state_dict())
    assert same(optimizer_tensors(other_optimizers), optimizer_tensors(optimizers))


def test_weights_alone_would_not_go_on_to_the_bit(build) -> None:
    """The test above sees the optimizers' state: without it the two part."""
    model, optimizers = build()
    learn(model, optimizers, steps=3)
    other, other_optimizers = build(seed=1)
    other.load_state_dict(model.state_dict())
    learn(model, optimizers, steps=2)
    learn(other, other_optimizers, steps=2)
    assert not same(other.state_dict(), model.state_dict())


def test_tensors_are_copies_on_their_way_out_and_in(build) -> None:
    model, optimizers = build()
    learn(model, optimizers, steps=1)
    states = optimizer_tensors(optimizers)
    packed = pack(model.state_dict() | states)
    before = [bytes(part) for part in packed.parts]
    given, kept = ({name: t.clone() for name, t in states.items()} for _ in range(2))
    restore_optimizers(optimizers, given)
    learn(model, optimizers, steps=1)
    assert [bytes(part) for part in packed.parts] == before
    assert same(given, kept)


def test_what_is_packed_is_a_safetensors_file() -> None:
    tensors = {
        "odd": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(3, 5).bfloat16(),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(6).view(2, 3).T,
        "ü": torch.tensor([-7], dtype=torch.int8),
    }
    assert same(safetensors.torch.load(b"".join(pack(tensors).parts)), tensors)
    assert safetensors.torch.load(b"".join(pack({}).parts)) == {}


def test_the_rest_of_a_checkpoint_comes_back_as_it_was(checkpoints) -> None:
    optimizer = {
        "step": torch.tensor(2**60),
        "generator": torch.arange(5, dtype=torch.uint8),
        "spread": torch.tensor(0.1, dtype=torch.float64),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    history = [{"step": 2.0, "loss": 0.1 + 0.2}, {"step": 4.0, "validation": 1e-17}]
    metrics = {"loss": 2.5, "accuracy": 1 / 3}
    one = small(4, optimizer=optimizer, history=history, metrics=metrics, total_steps=None)
    commit(checkpoints, one)
    saved = checkpoints.restore()
    assert saved is not None
    assert same(saved.optimizer, optimizer)
    manifest = saved.checkpoint
    assert (manifest.step, manifest.total_steps, manifest.samples) == (4, None, one.samples)
    assert (manifest.metrics, manifest.history) == (metrics, history)


def test_optimizers_leave_other_tensors_alone(build) -> None:
    model, optimizers = build()
    learn(model, optimizers, steps=1)
    states = optimizer_tensors(optimizers)
    restore_optimizers(optimizers, {**states, "generator": torch.arange(3), "a.b.c": torch.ones(1)})
    assert same(optimizer_tensors(optimizers), states)


def test_nothing_is_restored_from_an_empty_folder(checkpoints) -> None:
    assert checkpoints.restore() is None
    assert checkpoints.best() is None
    assert checkpoints.all() == []
    with pytest.raises(StageError, match=r"step-00000007.*missing"):
        checkpoints.restore(7)


def test_saving_and_restoring_leave_the_global_generator_alone(checkpoints) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    commit(checkpoints, small(1))
    checkpoints.restore()
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_model_are_refused_by_name(build, make_model, checkpoints) -> None:
    commit(checkpoints, taken(1, *build()))
    with pytest.raises(StageError, match=r"step-00000001 is of another model: .*size mismatch"):
        load_weights(make_model(d_model=32), checkpoints.all()[0])


# Which ones are kept


@pytest.mark.parametrize(
    ("mode", "values", "kept"),
    [
        ("min", [3.0, 1.0, 2.0, 4.0], [2, 3, 4]),
        ("max", [3.0, 1.0, 4.0, 2.0, 0.0], [3, 4, 5]),
        ("min", [4.0, 3.0, 2.0, 1.0], [3, 4]),
        ("min", [1.0, 2.0, 3.0, 4.0], [1, 3, 4]),
        ("min", [1.0, 1.0, 1.0], [2, 3]),
        ("min", [2.0, None, None, None], [1, 3, 4]),
        ("min", [None, None, None, None], [3, 4]),
        ("max", [2.0, float("nan"), 1.0, None], [1, 3, 4]),
    ],
)
def test_the_two_newest_and_the_best_are_kept(
    open_again, mode: str, values: list[float | None], kept: list[int]
) -> None:
    checkpoints = open_again(metric=Metric("score", mode))
    for step, value in enumerate(values, start=1):
        commit(checkpoints, small(step, metrics={} if value is None else {"score": value}))
    assert steps(checkpoints) == kept
    assert len(names_in(checkpoints)) == len(kept)
    best = checkpoints.best()
    numbers = [value for value in values if value is not None and value == value]
    chosen = {"min": min, "max": max}[mode](numbers, default=None)
    assert (best and best.metrics["score"]) == chosen


def test_steps_are_in_order_whatever_their_number_of_digits(checkpoints) -> None:
    for step in (9, 10, 99_999_999, 100_000_000):
        commit(checkpoints, small(step))
        assert steps(checkpoints)[-1] == step


def test_what_a_killed_process_left_half_done_is_deleted_and_what_is_not_ours_stays(
    checkpoints,
) -> None:
    for name in (".step-00000001.77-ab.tmp", ".damaged-step-00000001-1.77-ab.tmp"):
        (checkpoints.folder / name).write(MODEL_FILE, b"half")
    checkpoints.folder.write("notes.txt", b"mine")
    checkpoints.folder.write(".attempt.77.tmp", b"being written by another process")
    commit(checkpoints, small(2))
    assert names_in(checkpoints) == {"step-00000002", "notes.txt", ".attempt.77.tmp"}


def test_the_last_three_damaged_ones_stay(checkpoints, open_again) -> None:
    for step in range(1, 6):
        commit(checkpoints, small(step))
        truncate(path_of(checkpoints, step) / MODEL_FILE)
        assert restored_step(open_again()) is None
    commit(checkpoints, small(6))
    damaged = {f"damaged-step-{step:08d}-{step}" for step in (3, 4, 5)}
    assert names_in(checkpoints) == {*damaged, "step-00000006"}


def test_what_cannot_be_deleted_is_told_and_hurts_nothing(
    checkpoints, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(checkpoints, small(1), small(2))

    def refuse(folder: Folder, name: str) -> Folder:
        raise StageError("cannot rename: busy")

    monkeypatch.setattr(Folder, "rename", refuse)
    commit(checkpoints, small(3))
    assert steps(checkpoints) == [1, 2, 3]
    assert events.of("prune failed") == [{"error": "cannot rename: busy"}]


# What is damaged


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # of a tensor, where there are any
    path.write_bytes(content)


def link_elsewhere(path: Path) -> None:
    path.rename(path.parent.parent / f"elsewhere-{path.name}")
    path.symlink_to(path.parent.parent / f"elsewhere-{path.name}")


def turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit, Path.unlink, link_elsewhere, turn_into_folder]
)
@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE, MANIFEST])
def test_a_damaged_newest_checkpoint_is_put_aside_for_the_one_before(
    checkpoints, open_again, events: Events, name: str, damage: Callable[[Path], object]
) -> None:
    commit(checkpoints, small(1), small(2))
    damage(path_of(checkpoints, 2) / name)
    with pytest.raises(StageError, match=rf"step-00000002.*{name}"):
        open_again().restore(2)  # as the other workers do
    assert not events.of("quarantined")
    assert restored_step(open_again()) == 1
    (told,) = events.of("quarantined")
    assert told["checkpoint"] == "step-00000002" and name in told["reason"]
    assert {"step-00000001", "damaged-step-00000002-1"} <= names_in(checkpoints)
    commit(checkpoints, small(2))  # and training goes on from there
    assert restored_step(open_again()) == 2


@pytest.mark.parametrize("place", ["link", "link to a good one", "file", "empty folder"])
def test_what_only_looks_like_a_checkpoint_is_put_aside(checkpoints, place: str) -> None:
    commit(checkpoints, small(1))
    path = path_of(checkpoints, 2)
    if place == "link":
        path.symlink_to(path_of(checkpoints, 1))
    elif place == "link to a good one":
        commit(checkpoints, small(2))
        path.symlink_to(path.rename(path.with_name("elsewhere")))
    elif place == "file":
        path.write_bytes(b"x")
    else:
        path.mkdir()
    assert steps(checkpoints) == [1]
    assert restored_step(checkpoints) == 1
    assert names_in(checkpoints) - {"elsewhere"} == {"step-00000001", "damaged-step-00000002-1"}


@pytest.mark.parametrize("length", range(0, 500, 61))
def test_a_cut_off_manifest_is_none(checkpoints, length: int) -> None:
    commit(checkpoints, small(1), small(2))
    manifest = path_of(checkpoints, 2) / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:length])
    assert restored_step(checkpoints) == 1


def rewrite(path: Path, **changes: Any) -> None:
    """A manifest that someone wrote on purpose: it is whole, and says something else."""
    content = json.loads((path / MANIFEST).read_bytes())
    del content["digest"]
    (path / MANIFEST).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    "name", ["../step-00000001/model.safetensors", "/etc/passwd", "..", "a/b", "", "a\0b", "a\n"]
)
def test_a_manifest_that_names_other_places_is_none(checkpoints, name: str) -> None:
    commit(checkpoints, small(1), small(2))
    manifest = Checkpoint.load(checkpoints.folder / "step-00000002")
    assert manifest is not None
    path = path_of(checkpoints, 2)
    rewrite(path, files={**manifest.files, name: "0" * 64}, sizes={**manifest.sizes, name: 1})
    assert restored_step(checkpoints) == 1


@pytest.mark.parametrize(
    "changes", [{"step": 7}, {"step": -2}, {"files": {}}, {"sizes": {}}, {"files": None}]
)
def test_a_manifest_that_does_not_fit_its_folder_is_none(checkpoints, changes: Any) -> None:
    commit(checkpoints, small(1), small(2))
    rewrite(path_of(checkpoints, 2), **changes)
    assert restored_step(checkpoints) == 1


def test_a_changed_number_in_a_manifest_is_seen(checkpoints) -> None:
    commit(checkpoints, small(1), small(2))
    manifest = path_of(checkpoints, 2) / MANIFEST
    content = manifest.read_bytes()
    assert b'"total_steps": 100' in content
    manifest.write_bytes(content.replace(b'"total_steps": 100', b'"total_steps": 900'))
    assert restored_step(checkpoints) == 1


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_never_opened(checkpoints, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    commit(checkpoints, small(1), small(2))
    checkpoints.folder.write("model.pt", bomb)
    checkpoints.folder.write("step-00000009.pt", bomb)
    checkpoints.folder.write("step-00000003/model.pt", bomb)
    (path_of(checkpoints, 2) / MODEL_FILE).write_bytes(bomb)
    files = {MODEL_FILE: bomb, OPTIMIZER_FILE: bomb}
    rewrite(
        path_of(checkpoints, 2),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        sizes={name: len(content) for name, content in files.items()},
    )
    (path_of(checkpoints, 2) / OPTIMIZER_FILE).write_bytes(bomb)
    assert restored_step(checkpoints) == 1
    assert not (tmp_path / "exploded").exists()


def test_nothing_is_pickled(build, checkpoints) -> None:
    model, optimizers = build()
    learn(model, optimizers, steps=1)
    commit(checkpoints, taken(1, model, optimizers))
    files = {p for p in path_of(checkpoints, 1).parent.rglob("*") if p.is_file()}
    tensors = {path for path in files if path.suffix == ".safetensors"}
    assert {path.name for path in files - tensors} == {MANIFEST}
    for path in tensors:
        assert safetensors.torch.load_file(path)
    manifest = checkpoints.all()[0]
    assert manifest.files.keys() == manifest.sizes.keys() == {path.name for path in tensors}


def test_a_storage_that_does_not_answer_damages_nothing(
    checkpoints, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(checkpoints, small(1), small(2))

    def unavailable(folder: Folder, name: str) -> bytes:
        raise OSError(errno.EIO, "503 Slow Down")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", unavailable)
        with pytest.raises(StageError, match=r"step-00000002.* cannot be read: .*503"):
            checkpoints.restore()
    assert not events.of("quarantined")
    assert restored_step(checkpoints) == 2


# Whose they are


def test_a_checkpoint_of_another_job_is_refused_naming_every_difference(open_again) -> None:
    made_by = {"model.d_model": 32, "train.seed": 0, "betas": (0.9, 0.95), "data": "prepare-ab"}
    commit(open_again(made_by=made_by), small(120))
    assert open_again(made_by=made_by).restore() is not None
    assert open_again().restore() is not None  # who only looks need not know
    other = {"model.d_model": 64, "train.seed": 1, "betas": (0.9, 0.95), "tokenizer": "bpe"}
    for step in (None, 120):
        with pytest.raises(UserError) as refusal:
            open_again(made_by=other).restore(step)
        message = str(refusal.value)
        assert "step-00000120 was made with" in message
        assert "model.d_model = 32, this job has 64" in message
        assert "train.seed = 0, this job has 1" in message
        assert "data = prepare-ab, this job has nothing" in message
        assert "tokenizer = nothing, this job has bpe" in message
        assert "betas" not in message


def claim(folder: Folder, attempt: str) -> None:
    """From now on only this start of the training is to write there."""
    folder.write(ATTEMPT, attempt.encode())


def test_an_earlier_start_of_the_training_writes_no_more(open_again, events: Events) -> None:
    first = open_again(attempt="first")
    claim(first.folder, "first")
    commit(first, small(1))
    claim(first.folder, "second")
    commit(first, small(2))
    assert names_in(first) == {"step-00000001", "attempt"}
    assert [event["step"] for event in events.of("checkpoint dropped")] == [2]
    second = open_again(attempt="second")
    commit(second, small(2))
    assert steps(second) == [1, 2]


def test_an_earlier_start_moves_nothing_either(open_again) -> None:
    first = open_again(attempt="first")
    commit(first, small(1))
    truncate(path_of(first, 1) / MODEL_FILE)
    claim(first.folder, "second")
    commit(first, small(1))
    assert names_in(first) == {"step-00000001", "attempt"}


@pytest.mark.parametrize("place", ["disk", "object store"])
def test_a_start_that_is_superseded_while_it_writes_leaves_nothing(
    open_again, remote, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first = open_again(attempt="first")
    if place == "object store":
        first = Checkpoints(remote.folder, LOSS, attempt="first")
    claim(first.folder, "first")
    digest = checkpoint_module._digest

    def digest_late(parts: Parts) -> str:
        claim(first.folder, "second")
        return digest(parts)

    monkeypatch.setattr(checkpoint_module, "_digest", digest_late)
    commit(first, small(1))
    assert names_in(first) == {"attempt"}


def test_a_step_that_is_committed_already_is_left_as_it_is(checkpoints, open_again) -> None:
    commit(checkpoints, small(1))
    before = (path_of(checkpoints, 1) / MANIFEST).stat()
    commit(open_again(), small(1))
    after = (path_of(checkpoints, 1) / MANIFEST).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert names_in(checkpoints) == {"step-00000001"}


def test_a_step_that_lies_there_damaged_is_put_aside_and_written(checkpoints) -> None:
    commit(checkpoints, small(1))
    truncate(path_of(checkpoints, 1) / OPTIMIZER_FILE)
    commit(checkpoints, small(1))
    assert restored_step(checkpoints) == 1
    assert names_in(checkpoints) == {"step-00000001", "damaged-step-00000001-1"}


# In the background


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is closed, the disk takes its time."""
    gate, fsync = threading.Event(), os.fsync

    def slow(file: int) -> None:
        gate.wait(timeout=20)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    return gate


def test_saving_waits_for_no_disk_and_the_newest_is_what_counts(
    checkpoints, events: Events, gate: threading.Event
) -> None:
    for step in range(1, 30):
        checkpoints.save(small(step, metrics={}))
    assert steps(checkpoints) == []
    gate.set()
    checkpoints.finish()
    assert {event["step"] for event in events.of("checkpoint")} <= {1, 29}
    assert steps(checkpoints)[-1] == 29


def test_what_was_validated_is_never_dropped(
    checkpoints, events: Events, gate: threading.Event
) -> None:
    def save_all() -> None:
        for step in (1, 2, 3, 4):
            checkpoints.save(small(step))

    training = threading.Thread(target=save_all)
    training.start()
    training.join(timeout=0.2)
    assert training.is_alive()  # one is written, one waits, and the third has no room
    gate.set()
    training.join(timeout=20)
    checkpoints.finish()
    assert [event["step"] for event in events.of("checkpoint")] == [1, 2, 3, 4]


def test_what_was_validated_outlives_what_was_not(
    checkpoints, events: Events, gate: threading.Event
) -> None:
    checkpoints.save(small(1, metrics={}))  # it is being written from now on
    checkpoints.save(small(2, metrics={}))
    checkpoints.save(small(3))
    gate.set()
    checkpoints.save(small(4, metrics={}))
    checkpoints.finish()
    assert [event["step"] for event in events.of("checkpoint")] == [1, 3, 4]


def test_a_commit_tells_how_long_it_took_and_how_much_it_wrote(checkpoints, events) -> None:
    commit(checkpoints, small(1))
    (told,) = events.of("checkpoint")
    assert told["step"] == 1 and 0 <= told["seconds"] < 20
    tensors = path_of(checkpoints, 1).glob("*.safetensors")
    assert told["bytes"] == sum(path.stat().st_size for path in tensors)


def test_a_listener_that_fails_hurts_no_checkpoint(open_again) -> None:
    def fail(kind: str, **fields: Any) -> None:
        raise RuntimeError("the driver is gone")

    checkpoints = open_again(listener=fail)
    commit(checkpoints, small(1), small(2))
    assert steps(checkpoints) == [1, 2]


# Storage that refuses


class Disk:
    """Storage that refuses while `error` is set."""

    def __init__(self) -> None:
        self.error: int | None = None
        self.fsync = os.fsync

    def __call__(self, file: int) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self.fsync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk)
    return disk


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space and run it again"),
        (errno.EROFS, "Read-only file system; mount it writable and run it again"),
        (errno.EIO, "Input/output error; repair the storage and run it again"),
    ],
)
def test_a_disk_that_refuses_is_named_and_loses_nothing(
    checkpoints, disk: Disk, error: int, message: str
) -> None:
    disk.error = error
    checkpoints.save(small(1))
    with pytest.raises(
        StageError, match=f"cannot write .*step-00000001.*{message}: it starts anew"
    ):
        checkpoints.finish()
    disk.error = None
    checkpoints.finish()
    disk.error = error
    checkpoints.save(small(2))
    with pytest.raises(StageError, match=f"step-00000002.*{message}: it continues from step 1$"):
        checkpoints.finish()
    assert names_in(checkpoints) == {"step-00000001"}
    assert restored_step(checkpoints) == 1
    disk.error = None
    checkpoints.finish()
    assert restored_step(checkpoints) == 2


def test_the_end_of_a_training_has_patience_with_its_storage(open_again, disk: Disk) -> None:
    checkpoints = open_again(patience=20.0)
    disk.error = errno.ENOSPC
    checkpoints.save(small(1))
    threading.Timer(0.2, setattr, (disk, "error", None)).start()
    checkpoints.finish()
    assert restored_step(checkpoints) == 1


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_commit_that_failed_is_made_up_for_by_the_next(
    checkpoints, events: Events, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    checkpoints.save(small(1))
    wait_for(lambda: len(events.of("checkpoint failed")) == 1)
    disk.error = None
    checkpoints.save(small(2, metrics={}))
    checkpoints.finish()
    assert [event["step"] for event in events.of("checkpoint")] == [1, 2]  # 1 was validated
    (failed,) = events.of("checkpoint failed")
    assert failed["step"] == 1 and "No space left" in failed["error"]


def test_a_training_that_can_save_nothing_is_told_after_three_commits(
    checkpoints, events: Events, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    for step in (1, 2, 3):
        checkpoints.save(small(step, metrics={}))
        wait_for(lambda step=step: len(events.of("checkpoint failed")) == step)
        wait_for(lambda: "checkpoints" not in [thread.name for thread in threading.enumerate()])
    with pytest.raises(StageError, match=r"cannot write .*step-00000003.*No space left"):
        checkpoints.save(small(4))


def test_three_commits_that_fail_within_a_moment_do_not_end_a_training(
    open_again, events: Events, disk: Disk
) -> None:
    checkpoints = open_again(patience=20.0)
    disk.error = errno.ENOSPC
    for step in (1, 2, 3):
        checkpoints.save(small(step, metrics={}))
        wait_for(lambda step=step: len(events.of("checkpoint failed")) == step)
        wait_for(lambda: "checkpoints" not in [thread.name for thread in threading.enumerate()])
    disk.error = None
    checkpoints.save(small(4))
    checkpoints.finish()
    assert restored_step(checkpoints) == 4


def test_validated_snapshots_that_find_no_room_on_a_full_disk_are_not_waited_for_for_ever(
    checkpoints, disk: Disk
) -> None:
    disk.error = errno.ENOSPC
    with pytest.raises(StageError, match="No space left"):
        for step in (1, 2, 3, 4):
            checkpoints.save(small(step))


def test_an_error_that_nobody_foresaw_is_not_waited_for_for_ever(checkpoints) -> None:
    checkpoints.save(small(1, history=[{"step": object()}]))
    with pytest.raises(StageError, match=r"cannot write .*step-00000001: \w+: "):
        checkpoints.finish()


# Storage without folders that can be renamed at once


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(memory))
    monkeypatch.setattr(files, "_filesystem", lambda scheme_and_host: filesystem)
    return memory


@pytest.fixture
def remote(store: Any, events: Events) -> Checkpoints:
    return Checkpoints(Folder("toy://bucket/run"), LOSS, listener=events, patience=0.0)


def test_an_object_store_keeps_what_a_disk_would(remote, events: Events) -> None:
    assert remote.restore() is None
    for step in range(1, 6):
        commit(remote, small(step, metrics={"loss": float(step)}))
    assert steps(remote) == [1, 4, 5]
    assert names_in(remote) == {"step-00000001", "step-00000004", "step-00000005"}
    assert restored_step(remote) == 5
    assert not [kind for kind, _ in events if kind != "checkpoint"]


def test_the_manifest_makes_a_checkpoint_on_an_object_store(
    remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(remote, small(1))
    write = Folder.write

    def killed(folder: Folder, name: str, *content: bytes) -> None:
        if name == MANIFEST:
            raise OSError(errno.EIO, "killed")
        write(folder, name, *content)

    with monkeypatch.context() as patch, contextlib.suppress(StageError):
        patch.setattr(Folder, "write", killed)
        commit(remote, small(2))
    assert (remote.folder / "step-00000002").names() == [MODEL_FILE, OPTIMIZER_FILE]
    assert restored_step(Checkpoints(remote.folder, LOSS)) == 1
    remote.finish()
    assert restored_step(remote) == 2


@pytest.mark.parametrize("movable", [True, False])
def test_a_damaged_object_is_put_aside_or_marked(
    remote, store: Any, events: Events, monkeypatch: pytest.MonkeyPatch, movable: bool
) -> None:
    def refuse(*paths: str, **options: Any) -> None:
        raise OSError(errno.ENOTSUP, "folders cannot be moved")

    if not movable:
        monkeypatch.setattr(store, "mv", refuse)
    commit(remote, small(1), small(2))
    content = bytearray((remote.folder / "step-00000002").read(MODEL_FILE))
    content[-1] ^= 1
    (remote.folder / "step-00000002").write(MODEL_FILE, bytes(content))
    assert restored_step(remote) == 1
    assert [event["checkpoint"] for event in events.of("quarantined")] == ["step-00000002"]
    if movable:
        assert names_in(remote) == {"step-00000001", "damaged-step-00000002-1"}
    assert steps(remote) == [1]
    assert restored_step(remote) == 1
    with pytest.raises(StageError, match="step-00000002"):
        remote.restore(2)
    assert len(events.of("quarantined")) == 1
    commit(remote, small(2))
    assert restored_step(remote) == 2
