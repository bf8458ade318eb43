"""The `Task` interface: what a model learns, from which columns, and how it is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
)

from orchestrator.data.arrays import Arrays
from orchestrator.data.config import DataConfig
from orchestrator.data.reading import Reading, Row
from orchestrator.model.config import Family, ModelConfig
from orchestrator.processors.text import TokenizerConfig
from orchestrator.storage.artifact import Split

if TYPE_CHECKING:  # importing a task's name must not import torch, which takes seconds
    import torch
    from torch import Tensor

    from orchestrator.model.transformer import Transformer

Batch: TypeAlias = "dict[str, Tensor]"  # Arrays on the model's device


@dataclass(frozen=True)
class Metric:
    """The metric that selects the best checkpoint and steers the sweep."""

    name: str
    mode: Literal["min", "max"]

    def better(self, new: float, old: float) -> bool:
        """Whether the value `new` is better than `old`."""
        return new < old if self.mode == "min" else new > old


class LeftOut(ValueError):
    """A valid row that has nothing to learn, for example no label. `prepare` reports the number of
    such rows by reason, and does not count them as bad rows."""


class Processor(Protocol):
    """Encodes cleaned rows, and is saved with the prepared data: a tokenizer, a list of labels."""

    file_name: ClassVar[str]
    vocab_size: int
    num_outputs: int  # of a head other than the vocabulary, for example labels; else 1

    def to_bytes(self) -> bytes: ...


P = TypeVar("P", bound=Processor)


class Task(ABC, Generic[P]):
    """What a model learns. A task holds its sections of the job and no other state."""

    metric: ClassVar[Metric]
    columns: ClassVar[dict[str, str]]  # names and kinds (`data/kinds`); `data.columns` renames
    inputs: ClassVar[tuple[str, ...]]  # the columns that a request to the endpoint has
    optional: ClassVar[tuple[str, ...]] = ()  # columns that a row may lack; they are "" then
    serves: ClassVar[str] = "predictions"  # the engine of the endpoint: `serve/engines.py`
    pipeline: ClassVar[str] = ""  # Hugging Face's name of the task: `serve/hugging_face.py`
    families: ClassVar[tuple[Family, ...]]  # the supported ones; the first is the default
    one_shape: ClassVar[bool] = False  # all samples have one shape, unpadded: see `cost.compiles`
    counts: ClassVar[str] = "samples"  # the name of what a loss is averaged over
    context: ClassVar[int] = 128  # the default of `model.max_seq_len`
    fewest_rows: ClassVar[int] = 64  # the least global batch that is chosen by default
    lines: ClassVar[bool] = True  # a row of a txt file is a line, not a document
    split_by: ClassVar[str | None] = None  # rows with one value of this column share a split
    counted: ClassVar[str | None] = None  # the column whose values are counted for `look`

    def __init__(self, data: DataConfig, tokenizer: TokenizerConfig, model: ModelConfig) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.model = model

    @abstractmethod
    def clean(self, row: Row) -> Row | None:
        """The row normalised, with texts as values; None if the row is empty.

        Raises:
            ValueError: if the row is bad; `prepare` sets it aside and reports this reason.
            LeftOut: if the row is valid and has nothing to learn, for example no label.
        """

    @abstractmethod
    def fit_processor(self, rows: Iterable[Row]) -> P:
        """Fit the processor to a sample of the cleaned training rows.

        The sample has at least one row for every value of the column `counted`.
        """

    def look(self, values: dict[Split, Counter[str]], processor: P) -> list[str]:
        """Check the values of the column `counted` in each split, with their counts, before
        training. Returns one line for each thing that the user should know.

        Raises:
            UserError: if a model cannot learn from these values.
        """
        return []

    @abstractmethod
    def load_processor(self, content: bytes) -> P:
        """Restore the processor from the bytes of `to_bytes`."""

    @abstractmethod
    def encode(self, rows: list[Row], processor: P) -> Arrays:
        """Encode cleaned rows, in order, as samples of fixed shape: arrays of (samples, ...). The
        number of samples may differ from the number of rows."""

    def keep(self, rows: list[Row]) -> Arrays:
        """Whole texts of validation and test rows that `score` and `baselines` need, as arrays of
        objects. A task that keeps any must encode each row as one sample. By default none."""
        return {}

    @abstractmethod
    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        """A new model for the processor's sizes. Its weights are drawn from torch's global
        generator."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the loss terms, in nats or squared errors, and their number: float32 scalars.
        Workers and micro-batches add both."""

    @abstractmethod
    def predict(self, model: torch.nn.Module, batch: Batch, processor: P) -> Arrays:
        """Arrays of (B, ...) that `score` needs. Validation calls it, so it should be fast."""

    @abstractmethod
    def score(self, predictions: Arrays) -> dict[str, float]:
        """The metrics, by name, of all predictions of a split; `metric` must be among them.
        `predictions` also holds the arrays of `keep` and, for the test split, of `answer`."""

    def answer(self, model: Transformer, batch: Batch, processor: P) -> Arrays:
        """Arrays of (B, ...) that are too slow for validation, for example generated text. `score`
        gets them for the test split, and `reply` for the endpoint. By default none."""
        return {}

    def sample(self, model: Transformer, batch: Batch, processor: P) -> str | None:
        """What the model makes of a batch's first row, on one line, for a person who watches the
        training. Cheap: it is called after validations. None unless a task predicts text."""
        return None

    def reply(self, answers: Arrays, row: int, processor: P) -> dict[str, Any]:
        """The endpoint's JSON reply for one row of the arrays of `predict` and `answer`."""
        return {name: values[row].tolist() for name, values in answers.items()}

    def explain(self, predictions: Arrays) -> str:
        """A note on the metrics for the report, for example the signature of a library."""
        return ""

    def baselines(self, train: Arrays, test: Arrays, processor: P) -> dict[str, dict[str, float]]:
        """Test metrics of simple methods, by the method's name. By default none."""
        return {}


def reading_of(task: Task[Any]) -> Reading:
    """How the task's columns are read from the rows of files."""
    return task.data.reading(task.columns, task.optional, task.lines)
