"""Live figures from the workers to the driver, through an actor: it works on any cluster."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import tensorboardX
from ray.exceptions import RayError

from orchestrator.artifact import Folder
from orchestrator.errors import OrchestratorError
from orchestrator.progress import Progress

POLL_SECONDS = 0.3


class Mailbox:
    """An actor: workers leave what they have to tell, the driver fetches it."""

    def __init__(self) -> None:
        self._messages: list[Any] = []

    def put(self, message: Any) -> None:
        self._messages.append(message)

    def take(self) -> list[Any]:
        messages, self._messages = self._messages, []
        return messages


@dataclass(frozen=True)
class MailboxReporter:
    """Sends a training's figures without waiting for anybody."""

    mailbox: Any

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        self.mailbox.put.remote((step, total_steps, values))

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        values = {f"validation {name}": value for name, value in metrics.items()}
        self.mailbox.put.remote((step, total_steps, values))


class Feed:
    """Passes on what arrives in the mailbox: to a progress display and to TensorBoard files."""

    def __init__(self, folder: Folder, progress: Progress) -> None:
        self.mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
        self.failures: list[OrchestratorError] = []
        self._progress = progress
        self._board: tensorboardX.SummaryWriter | None = None
        if folder.local_path is not None:  # TensorBoard files can only be appended to locally
            self._board = tensorboardX.SummaryWriter(str(folder.local_path / "tensorboard"))
        self._total: int | None = None
        self._step = -1
        self._done = threading.Event()

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Fetch in the background while the block runs, and once more at its end."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            if self._board is not None:
                self._board.close()

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._done.wait(POLL_SECONDS)
            with contextlib.suppress(RayError):  # the cluster itself is gone: the driver will tell
                for message in ray.get(self.mailbox.take.remote()):
                    self._forward(message)

    def _forward(self, message: Any) -> None:
        if isinstance(message, OrchestratorError):
            self.failures.append(message)
            return
        step, total, values = message
        if self._step < 0 or total != self._total:
            self._progress.start("training", total=total, unit="steps")
            self._total, self._step = total, 0
        self._progress.advance(step - self._step)
        self._step = step
        self._progress.show(values)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
