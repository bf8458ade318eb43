"""The interface that a task fills in: what is learned, from which columns, and how it is scored."""

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
from orchestrator.data.reading import Kind, Reading, Row
from orchestrator.model.config import Family, ModelConfig
from orchestrator.processors.text import TokenizerConfig
from orchestrator.storage.artifact import Split

if TYPE_CHECKING:  # a job names its task without waiting for torch
    import torch
    from torch import Tensor

    from orchestrator.model.transformer import Transformer

Batch: TypeAlias = "dict[str, Tensor]"  # Arrays on the model's device


@dataclass(frozen=True)
class Metric:
    """What picks the best checkpoint and steers the sweep."""

    name: str
    mode: Literal["min", "max"]

    def better(self, new: float, old: float) -> bool:
        return new < old if self.mode == "min" else new > old


class LeftOut(ValueError):
    """A sound row of which nothing can be learned: it has no label, say. Such rows are counted by
    this reason and told, and are no mistake of the file's."""


class Processor(Protocol):
    """What encodes raw rows and is saved beside the prepared data: a tokenizer, a label list."""

    file_name: ClassVar[str]
    vocab_size: int
    num_outputs: int  # of a head that is not the vocabulary: labels, say; else 1

    def to_bytes(self) -> bytes: ...


P = TypeVar("P", bound=Processor)


class Task(ABC, Generic[P]):
    """One thing to learn. A task is built from its sections of the job and holds no other state."""

    metric: ClassVar[Metric]
    columns: ClassVar[dict[str, Kind]]  # what a row holds; `data.columns` says what files call it
    inputs: ClassVar[tuple[str, ...]]  # those of them that a request to the endpoint brings
    optional: ClassVar[tuple[str, ...]] = ()  # those that a row may lack: they are "" then
    serves: ClassVar[Literal["predictions", "completions"]] = "predictions"  # what is asked of it
    families: ClassVar[tuple[Family, ...]]  # the first one where a job does not say
    one_shape: ClassVar[bool] = False  # of all samples, so that none is padded: see `cost.compiles`
    counts: ClassVar[str] = "samples"  # what a loss is counted over
    context: ClassVar[int] = 128  # `model.max_seq_len` where nothing decides it
    fewest_rows: ClassVar[int] = 64  # of a global batch, likewise
    lines: ClassVar[bool] = True  # a row of a txt file is a line, not a document
    split_by: ClassVar[str | None] = None  # rows that share this column come into one split
    counted: ClassVar[str | None] = None  # every value of this column is looked at: see `look`

    def __init__(self, data: DataConfig, tokenizer: TokenizerConfig, model: ModelConfig) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.model = model

    @abstractmethod
    def clean(self, row: Row) -> Row | None:
        """A row as it is to be learned from, its values as text; None where nothing is in it.

        Raises:
            ValueError: where it cannot be learned from; it is set aside, with this reason.
            LeftOut: where the row is sound and says nothing: it has no label.
        """

    @abstractmethod
    def fit_processor(self, rows: Iterable[Row]) -> P:
        """Learn the processor from a sample of the cleaned training rows.

        The sample has a row of every value of the column `counted`.
        """

    def look(self, values: dict[Split, Counter[str]], processor: P) -> list[str]:
        """What the user should know of the values of `counted` in each split, before anything is
        trained: a line each.

        Raises:
            UserError: where nothing can be learned from them.
        """
        return []

    @abstractmethod
    def load_processor(self, content: bytes) -> P:
        """The processor that `to_bytes` wrote."""

    @abstractmethod
    def encode(self, rows: list[Row], processor: P) -> Arrays:
        """Cleaned rows, in order, as fixed-shape samples; their number may differ."""

    def keep(self, rows: list[Row]) -> Arrays:
        """What `score` and `baselines` need whole of rows that are validated or tested: texts, as
        arrays of objects. `encode` makes one sample of each row then. Nothing, unless a task says.
        """
        return {}

    @abstractmethod
    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        """A new model, for the processor's sizes, with weights from torch's global generator."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over its terms, and their number: two float32 scalars."""

    @abstractmethod
    def predict(self, model: torch.nn.Module, batch: Batch, processor: P) -> Arrays:
        """What `score` needs of each row of a batch, cheap enough to validate with."""

    @abstractmethod
    def score(self, predictions: Arrays) -> dict[str, float]:
        """Metrics of all predictions, with what `keep` kept of their rows; the task's own metric is
        among them."""

    def answer(self, model: Transformer, batch: Batch, processor: P) -> Arrays:
        """What takes longer, generated text say: `score` has it for the test split, and the
        endpoint's replies are made of it. Nothing, unless a task generates."""
        return {}

    def sample(self, model: Transformer, batch: Batch, processor: P) -> str | None:
        """What the model makes of a batch's first row, on one line, for a person who watches the
        training. Cheap: it is called after validations. None unless a task predicts text."""
        return None

    def reply(self, answers: Arrays, row: int, processor: P) -> dict[str, Any]:
        """What the endpoint says of one row of what `predict` and `answer` found, as JSON."""
        return {name: values[row].tolist() for name, values in answers.items()}

    def explain(self, predictions: Arrays) -> str:
        """How `score` counted, for the report: the signature of a metric, say."""
        return ""

    def baselines(self, train: Arrays, test: Arrays, processor: P) -> dict[str, dict[str, float]]:
        """What simple methods reach on the test split, by name; none unless a task knows some."""
        return {}


def reading_of(task: Task[Any]) -> Reading:
    """What is read of each row of a task's files."""
    lines = task.lines if task.data.lines is None else task.data.lines
    return Reading(task.data, task.columns, lines, task.optional)
