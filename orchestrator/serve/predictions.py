"""Answering requests for predictions: rows in, the task's replies out."""

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.errors import UserError
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.protocol import PredictionRequest, PredictionResponse
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.strict_json import finite

MARGIN = 16  # of tokens that a task adds to a row's


class Predictor:
    """The model of a finished training, on the CPU, fed by the code that prepared its data."""

    def __init__(self, job: Job, prepared: PreparedData, training: Training) -> None:
        self.task = job.build_task()
        self.model_name = job.name
        self.trained = TrainedModel.load(self.task, prepared, training.checkpoint())
        self.processor = self.trained.processor
        left_out = dict.fromkeys(self.task.optional, "")
        self.nothing = dict.fromkeys(self.task.columns) | left_out

    def predict(self, request: PredictionRequest) -> PredictionResponse:
        """Answer a request.

        Raises:
            UserError: where it asks for another model, or a row lacks a column or any content.
        """
        if request.model not in (None, self.model_name):
            raise UserError(f"model {request.model!r} is not served here; {self.model_name!r} is")
        rows = [self._row(number, row) for number, row in enumerate(request.inputs)]
        arrays = self.task.encode(rows, self.processor)
        if len(next(iter(arrays.values()))) != len(rows):
            raise UserError(f"an input is longer than {self.task.model.max_seq_len} tokens")
        predictions = self.trained.predict(arrays)
        outputs = [
            finite(self.task.reply(predictions, number, self.processor))
            | ({"truncated": True} if self._is_cut(row, number, arrays) else {})
            for number, row in enumerate(rows)
        ]
        return PredictionResponse(model=self.model_name, outputs=outputs)

    def _is_cut(self, row: Row, number: int, arrays: Arrays) -> bool:
        """Whether a row has more tokens than the model takes: with more room, more are encoded."""
        size = sum(len(text.encode()) for text in row.values() if text) + MARGIN
        if size <= self.task.model.max_seq_len // 2:  # a part of a row may have half of the room
            return False
        roomy = self.task.model.model_copy(update={"max_seq_len": 2 * size})
        whole = type(self.task)(self.task.data, self.task.tokenizer, roomy)
        found = whole.encode([row], self.processor)
        lengths = [name for name in arrays if name.endswith("_length")]
        return any(found[name].max(initial=0) > arrays[name][number] for name in lengths)

    def _row(self, number: int, given: dict[str, str]) -> Row:
        """A row as the task learns from it, with something where it would say what is wanted."""
        wanted = set(self.task.inputs)
        if not wanted - set(self.task.optional) <= set(given) <= wanted:
            names = ", ".join(sorted(wanted))
            raise UserError(
                f"inputs[{number}]: must hold {names}, not {', '.join(given) or 'nothing'}"
            )
        try:
            "".join(given.values()).encode()
        except UnicodeEncodeError:
            raise UserError(f"inputs[{number}]: is not valid Unicode") from None
        try:
            cleaned = self.task.clean({**self.nothing, **given})
        except ValueError as error:
            raise UserError(f"inputs[{number}]: {error}") from None
        if cleaned is None:
            raise UserError(f"inputs[{number}]: holds nothing")
        return cleaned
