"""Answering requests for predictions: rows in, the task's replies out."""

import torch

from orchestrator.data.arrays import Arrays
from orchestrator.data.columns import of_kind
from orchestrator.data.reading import Row
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.learn.batches import to_device
from orchestrator.learn.checkpoints import load_weights
from orchestrator.learn.fit import load_processor
from orchestrator.serve.protocol import PredictionRequest, PredictionResponse
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.strict_json import finite

MARGIN = 16  # of tokens that a task adds to a row's


class Predictor:
    """The model of a finished training, on the CPU, fed by the code that prepared its data."""

    def __init__(self, job: Job, prepared: PreparedData, training: Training) -> None:
        self.task = job.build_task()
        self.model_name = job.name
        self.processor = load_processor(self.task, prepared)
        sizes = self.processor.vocab_size, self.processor.num_outputs
        self.model = self.task.build_model(*sizes).eval()
        load_weights(self.model, training.checkpoint())
        columns = self.task.columns
        optional = {c: of_kind(columns[c], None, optional=True) for c in self.task.optional}
        self.nothing = dict.fromkeys(columns) | optional

    @torch.inference_mode()
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
        batch = to_device(arrays, torch.device("cpu"))
        answers = {
            **self.task.predict(self.model, batch, self.processor),
            **self.task.answer(self.model, batch, self.processor),
        }
        outputs = [
            finite(self.task.reply(answers, number, self.processor))
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
