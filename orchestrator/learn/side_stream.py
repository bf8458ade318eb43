"""Copies between the CPU's memory and a GPU's, beside the computation.

A GPU works through a stream in order, and through several streams side by side. What is copied in a
stream of its own delays the computation only where that waits for the copy: by an event, and on the
GPU, while the CPU goes on. On a CPU the same lines copy at once, and nobody waits.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from orchestrator.tasks.task import Batch


class Event(Protocol):
    """The point in a stream at which copies are done: `torch.cuda.Event`, `torch.cpu.Event`."""

    def synchronize(self) -> None:
        """Have this thread wait for it."""


class Sent(NamedTuple):
    """Tensors that are on their way to the device."""

    tensors: Batch
    arrived: Event


class SideStream:
    """One more stream of the current device, for copies.

    PyTorch reuses the memory of a tensor in the order of the stream that it was made in.
    `record_stream` tells of another one that uses it. Pinned memory is recorded by the copy itself.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream()

    def send(self, tensors: Batch) -> Sent:
        """Begin to copy tensors of `infer.batch.on_host` to the device."""
        with self._module.stream(self._stream):
            copies = {
                name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()
            }
        return Sent(copies, self._event())

    def received(self, sent: Sent) -> Batch:
        """The tensors on the device, for use in the current stream, which waits for them."""
        self.hold(sent.arrived)
        for tensor in sent.tensors.values():
            self._record(tensor, self._module.current_stream())
        return sent.tensors

    def fetch(self, pairs: Mapping[Tensor, Tensor]) -> Event:
        """Begin to copy each tensor of the device into one of pinned memory.

        The copies see what the current stream has done so far. Before it changes one of these
        tensors, it has to `hold` for the event.
        """
        self._stream.wait_stream(self._module.current_stream())
        with self._module.stream(self._stream):
            for tensor, target in pairs.items():
                target.copy_(tensor, non_blocking=True)
                self._record(tensor, self._stream)
        return self._event()

    def hold(self, event: Event) -> None:
        """The current stream goes on only after the event. The CPU does not wait."""
        self._module.current_stream().wait_event(event)

    def _event(self) -> Event:
        event: Event = self._module.Event()
        event.record(self._stream)  # type: ignore[attr-defined]
        return event

    def _record(self, tensor: Tensor, stream: Any) -> None:
        if tensor.device.type != "cpu":
            tensor.record_stream(stream)
