"""Live figures from the workers to the driver, through an actor: it works on any cluster."""

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
import tensorboardX

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

    def run(self, work: Callable[[], object]) -> None:
        """Do the work in a thread, and pass on here what arrives meanwhile.

        In a thread Ray Train installs no signal handler of its own, which would swallow Ctrl-C.
        """
        done: Future[object] = Future()
        threading.Thread(target=_settle, args=(done, work), daemon=True).start()
        try:
            ended = False
            while not ended:  # what arrives just before the end is fetched after it
                ended = bool(concurrent.futures.wait([done], timeout=POLL_SECONDS).done)
                for message in ray.get(self.mailbox.take.remote()):
                    self._forward(message)
            done.result()
        finally:
            if self._board is not None:
                self._board.close()

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


def _settle(done: "Future[object]", work: Callable[[], object]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
