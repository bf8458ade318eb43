"""Copies beside the computation: what waits for what, and what a CPU makes of the same lines."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.infer.batch import on_host, to_device, without_padding
from orchestrator.learn import side_stream
from orchestrator.learn.optimizer import build_optimizers
from orchestrator.learn.side_stream import SideStream
from orchestrator.learn.skipped_steps import Guard
from orchestrator.learn.snapshot import pack
from orchestrator.learn.state import State
from orchestrator.learn.world import World
from tests.unit.toy import toy_config, toy_task

CPU = torch.device("cpu")


class FakeGpu:
    """Streams that only write down, in order, what they are asked to do: there is no GPU here."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = self.compute = FakeStream(self, "compute")

    def Stream(self) -> "FakeStream":
        return FakeStream(self, "side")

    def Event(self) -> Any:
        return SimpleNamespace(
            record=lambda stream: self.log.append(f"event in {stream.name}"),
            synchronize=lambda: self.log.append("CPU waits"),
        )

    def current_stream(self) -> "FakeStream":
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        self.current = stream
        yield
        self.current = self.compute


class FakeStream:
    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_event(self, event: object) -> None:
        self.gpu.log.append(f"{self.name} waits")

    def wait_stream(self, other: "FakeStream") -> None:
        self.gpu.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    copy, to = Tensor.copy_, Tensor.to

    def copy_in_stream(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        fake.log.append(f"copy in {fake.current.name}")
        return copy(target, source)

    def to_in_stream(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        fake.log.append(f"copy in {fake.current.name}")
        return to(tensor, device)

    def record(side: SideStream, tensor: Tensor, stream: FakeStream) -> None:
        fake.log.append(f"memory in use by {stream.name}")

    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    monkeypatch.setattr(Tensor, "copy_", copy_in_stream)
    monkeypatch.setattr(Tensor, "to", to_in_stream)
    monkeypatch.setattr(side_stream.SideStream, "_record", record)
    return fake


def test_a_batch_is_copied_aside_and_only_the_computation_waits_for_it(gpu: FakeGpu) -> None:
    side = SideStream(CPU)
    sent = side.send({"tokens": torch.arange(3)})
    assert gpu.log == ["copy in side", "event in side"]
    assert side.received(sent)["tokens"].tolist() == [0, 1, 2]
    assert gpu.log[2:] == ["compute waits", "memory in use by compute"]


def test_a_snapshot_is_copied_after_the_step_and_read_after_the_copies(gpu: FakeGpu) -> None:
    packed = pack({"weight": torch.ones(2)}, SideStream(CPU))
    assert gpu.log == [
        "side waits for compute",
        "copy in side",
        "memory in use by side",
        "event in side",
    ]
    assert b"".join(packed.parts).endswith(torch.ones(2).numpy().tobytes())
    assert gpu.log[4:] == ["CPU waits"]


def test_weights_change_only_after_their_snapshot_is_copied(gpu: FakeGpu) -> None:
    model = torch.nn.Linear(2, 2)
    state = State(model, [], Guard(CPU, 6.0), "fp32")
    state.before_update()
    assert gpu.log == []
    state.snapshot(None, validated=False)
    del gpu.log[:]
    for _ in range(2):  # the second update has nothing to wait for
        state.before_update()
    assert gpu.log == ["compute waits"]


def test_on_a_cpu_a_snapshot_is_a_copy_at_once() -> None:
    model = toy_task().build_model(257, 1)
    optimizers = build_optimizers(model, toy_config(), World())
    state = State(model, optimizers, Guard(CPU, 6.0), "fp32")
    before = b"".join(state.snapshot(None, validated=False).model.parts)
    snapshot = state.snapshot(None, validated=False)
    state.before_update()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert b"".join(snapshot.model.parts) == before
    assert b"".join(state.snapshot(None, validated=False).model.parts) != before


# What is copied


def test_the_padding_that_all_rows_share_stays_behind() -> None:
    tokens = np.arange(12, dtype=np.uint16).reshape(2, 6)
    arrays = {
        "tokens": tokens,
        "tokens_length": np.array([2, 4], dtype=np.int32),
        "image": tokens,
        "text": np.array(["a", "b"], dtype=object),
    }
    batch = to_device(arrays, CPU)
    assert batch["tokens"].tolist() == tokens[:, :4].tolist()
    assert batch["image"].shape == (2, 6)
    assert set(batch) == {"tokens", "tokens_length", "image"}
    assert all(map(torch.equal, on_host(arrays, CPU).values(), batch.values()))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_rows_without_tokens_keep_one_of_padding(lengths: list[int]) -> None:
    arrays = {
        "tokens": np.zeros((len(lengths), 5), dtype=np.uint16),
        "tokens_length": np.array(lengths, dtype=np.int32),
    }
    cut = without_padding(arrays)["tokens"]
    assert cut.shape == (len(lengths), 1 if lengths else 5)
    assert arrays["tokens"].shape == (len(lengths), 5)
