"""Language modelling that notes when each step begins: `task: benchmarks.timed_task:...` in a job.

A job may name any task by its import path. So the engine that is measured is the one that users
have, and its steps are timed by the same clock as those of its peers.
"""

import functools
import os
import time
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.data.reading import Row
from orchestrator.tasks.task import Metric, Task

FOLDER = "BENCHMARK_TIMINGS"  # the variable that names where the workers note their steps


class TimedLanguageModelling(Task[Any]):
    """Hands everything on, as late as the built-in task would be imported: torch takes seconds."""

    metric = Metric("loss", "min")
    columns: ClassVar[dict[str, str]] = {"text": "text"}
    inputs = ("text",)
    families = ("decoder",)
    lines = False

    @functools.cached_property
    def task(self) -> Task[Any]:
        from orchestrator.tasks.language_modelling import LanguageModelling

        return LanguageModelling(self.data, self.tokenizer, self.model)

    def clean(self, row: Row) -> Row | None:
        return self.task.clean(row)

    def fit_processor(self, rows: Iterable[Row]) -> Any:
        return self.task.fit_processor(rows)

    def load_processor(self, content: bytes) -> Any:
        return self.task.load_processor(content)

    def encode(self, rows: list[Row], processor: Any) -> Any:
        return self.task.encode(rows, processor)

    def build_model(self, vocab_size: int, num_outputs: int) -> Any:
        import torch

        note()  # the first line of a worker: it is ready
        self.seed = torch.initial_seed()
        return self.task.build_model(vocab_size, num_outputs)

    def loss(self, model: Any, batch: Any) -> Any:
        import torch

        # From then on one for each step: a benchmark's steps have one micro-batch, which has a seed
        # of its own. What is timed before them, to choose the precision, has not.
        if torch.initial_seed() != self.seed:
            note()
        return self.task.loss(model, batch)

    def predict(self, model: Any, batch: Any, processor: Any) -> Any:
        return self.task.predict(model, batch, processor)

    def score(self, predictions: Any) -> dict[str, float]:
        return self.task.score(predictions)


def note() -> None:
    """Write down the time, and the niceness that this process runs at."""
    _file().write(f"{time.time()} {os.nice(0)}\n".encode())


@functools.cache
def _file() -> FileIO:
    """A file of each worker, unbuffered, named by its rank and its process."""
    from torch import distributed

    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return FileIO(Path(os.environ[FOLDER]) / f"{rank}-{os.getpid()}", "w")
