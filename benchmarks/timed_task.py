"""Language modelling that records when each step begins. A job names it by
`task: benchmarks.timed_task:TimedLanguageModelling`.

Any job can name a task by its import path, so the engine that is measured is unchanged, and the
same clock times its steps and those of its peers.
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

FOLDER = "BENCHMARK_TIMINGS"  # environment variable: the folder of the workers' notes


class TimedLanguageModelling(Task[Any]):
    """Delegates to the built-in task, and imports it as late as the engine would, since torch takes
    seconds to import."""

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

        note()  # the worker is ready
        self.seed = torch.initial_seed()
        return self.task.build_model(vocab_size, num_outputs)

    def loss(self, model: Any, batch: Any) -> Any:
        import torch

        # A step of the benchmarks has one micro-batch, which has its own seed. The passes that are
        # timed before, to choose the precision, keep the model's seed.
        if torch.initial_seed() != self.seed:
            note()
        return self.task.loss(model, batch)

    def predict(self, model: Any, batch: Any, processor: Any) -> Any:
        return self.task.predict(model, batch, processor)

    def score(self, predictions: Any) -> dict[str, float]:
        return self.task.score(predictions)


def note() -> None:
    """Record the time and the niceness of this process."""
    _file().write(f"{time.time()} {os.nice(0)}\n".encode())


@functools.cache
def _file() -> FileIO:
    """The worker's own file, unbuffered, named by its rank and its process."""
    from torch import distributed

    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return FileIO(Path(os.environ[FOLDER]) / f"{rank}-{os.getpid()}", "w")
