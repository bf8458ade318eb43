"""Any order of saving, dying, damage and restoring: the newest valid checkpoint comes back."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestrator.errors import StageError
from orchestrator.learn import checkpoints as checkpoint
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.snapshot import Packed, Snapshot, pack
from orchestrator.storage.checkpoint_files import MODEL_FILE, OPTIMIZER_FILE
from orchestrator.storage.folder import MANIFEST, Folder
from orchestrator.tasks.task import Metric

CHANGES = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
FILES = st.sampled_from([MODEL_FILE, OPTIMIZER_FILE, MANIFEST])


class Killed(BaseException):
    """Not an Exception: nothing that a process does in its defence may help it."""


class Process:
    """Counts the changes to the file system, and dies before the one that it is told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = math.inf
        for name in CHANGES:
            patch.setattr(os, name, self.counted(name, getattr(os, name)))

    def counted(self, name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def one_less(*args: Any, **keywords: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                if name == "write" and self.left == -1:
                    change(args[0], bytes(args[1])[: len(args[1]) // 2])  # torn in the middle
                raise Killed
            return None if name == "fsync" else change(*args, **keywords)  # no power cuts here

        return one_less


def snapshot(step: int) -> Snapshot:
    """What a deterministic training would be after this step; every third was validated."""
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        step=step,
        total_steps=None if step < 3 else 100,
        model=pack({"weight": torch.randn(32, 4, generator=generator)}),
        optimizer=pack(
            {"moment": torch.randn(99, generator=generator), "step": torch.tensor(step)}
        ),
        metrics={} if step % 3 else {"loss": float(step * 7919 % 13)},
        history=[{"step": float(done)} for done in range(step)],
        precision="fp32",
        notices=[],
        samples=f"{step:064x}",
    )


def assert_same(saved: dict[str, torch.Tensor], expected: Packed) -> None:
    assert b"".join(pack(saved).parts) == b"".join(expected.parts)


def says_the_same(manifest: bytes, changed: bytes) -> bool:
    before = json.loads(manifest)
    try:
        after = json.loads(changed)
    except ValueError:
        return False
    known = {name: value for name, value in after.items() if name in before}
    return {"digest": before["digest"], **known} == before


class Training(RuleBasedStateMachine):
    process: Process

    @initialize()
    def start(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="checkpoints-"))
        self.step = 0
        self.valid: set[int] = set()  # committed, and not damaged since
        self.flipped: set[int] = set()  # of the right size, so that only a restore sees it
        self.quarantined: list[str] = []
        self.restart()

    def restart(self) -> None:
        self.process.left = math.inf
        self.checkpoints = Checkpoints(
            Folder(str(self.path)), Metric("loss", "min"), patience=0.0, listener=self.hear
        )

    def hear(self, kind: str, **fields: Any) -> None:
        assert kind != "prune failed", fields
        if kind == "quarantined":
            self.quarantined.append(fields["checkpoint"])

    def teardown(self) -> None:
        self.process.left = math.inf
        shutil.rmtree(self.path)

    def folders(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if name.startswith("step-"))

    def lying_there(self) -> set[int]:
        return {int(name.removeprefix("step-")) for name in self.folders()}

    def forget_deleted(self) -> None:
        self.valid &= self.lying_there()
        self.flipped &= self.lying_there()

    @rule(steps=st.integers(1, 3))
    def save(self, steps: int) -> None:
        self.step += steps
        self.checkpoints.save(snapshot(self.step))
        self.checkpoints.finish()
        self.flipped.discard(self.step)
        self.valid.add(self.step)
        good = sorted(self.valid | self.flipped)
        validated = [step for step in good if snapshot(step).metrics]
        best = sorted(validated, key=lambda step: (snapshot(step).metrics["loss"], -step))[:1]
        assert {*good[-2:], *best} <= self.lying_there()
        assert not [name for name in os.listdir(self.path) if name.endswith(".tmp")]
        self.forget_deleted()

    @rule(steps=st.integers(1, 3), changes=st.integers(0, 60))
    def die_in_mid_save(self, steps: int, changes: int) -> None:
        newest = sorted(self.valid | self.flipped)[-2:]
        self.process.left = changes
        try:
            self.checkpoints.save(snapshot(self.step + steps))
            self.checkpoints.finish()
        except StageError as error:
            assert isinstance(error.__cause__, Killed)
        self.restart()
        if self.step + steps in self.lying_there():
            self.step += steps
            self.valid.add(self.step)
        else:
            assert set(newest) <= self.lying_there()  # nothing went before the newer one was there
        self.forget_deleted()

    @precondition(lambda self: self.folders())
    @rule(data=st.data(), name=FILES, how=st.sampled_from(["cut", "flip", "delete", "link"]))
    def damage(self, data: st.DataObject, name: str, how: str) -> None:
        folder = data.draw(st.sampled_from(self.folders()[::-1]))
        path = self.path / folder / name
        step = int(folder.removeprefix("step-"))
        if not path.is_file() or path.is_symlink() or not (content := path.read_bytes()):
            return
        if how == "flip" and step not in self.valid:
            return  # what is flipped twice may be whole again
        position = data.draw(st.integers(0, len(content) - 1))
        if how == "cut":
            path.write_bytes(content[:position])
        elif how == "flip":
            flipped = content[position] ^ data.draw(st.integers(1, 255))
            path.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
            if name == MANIFEST and says_the_same(content, path.read_bytes()):
                return  # in the space between two words, say
        else:
            path.unlink()
            if how == "link":
                (self.path / "elsewhere").write_bytes(content)
                path.symlink_to(self.path / "elsewhere")
        self.valid.discard(step)
        self.flipped.discard(step)
        if how == "flip" and name != MANIFEST:
            self.flipped.add(step)

    @precondition(lambda self: self.folders())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        folder = data.draw(st.sampled_from(self.folders()))
        shutil.rmtree(self.path / folder)
        self.forget_deleted()

    @precondition(lambda self: self.folders())
    @rule()
    def restore(self) -> None:
        self.restart()
        saved = self.checkpoints.restore()
        if saved is None:
            assert not self.valid
            self.step = 0
        else:
            self.step = saved.checkpoint.step
            assert self.step == max(self.valid)
            expected = snapshot(self.step)
            assert_same(saved.model, expected.model)
            assert_same(saved.optimizer, expected.optimizer)
            for field in ("total_steps", "metrics", "history", "samples"):
                assert getattr(saved.checkpoint, field) == getattr(expected, field)
        # What was passed over lies elsewhere.
        assert max(self.lying_there(), default=0) == self.step
        self.forget_deleted()

    @rule()
    def other_workers_agree(self) -> None:
        for step in self.valid:
            saved = self.checkpoints.restore(step)
            assert saved is not None
            assert_same(saved.model, snapshot(step).model)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Training]]:
    with monkeypatch.context() as patch:
        patch.setattr(Training, "process", Process(patch), raising=False)
        # Manifests tell seconds: with a clock that stands still each is the same when run again.
        patch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: 0.0))
        yield Training


def test_the_newest_valid_checkpoint_is_always_restored(process: type[Training]) -> None:
    run_state_machine_as_test(process, settings=settings(max_examples=100, stateful_step_count=30))
