"""Answering requests for predictions: rows in, the task's replies out."""

import json
from typing import Any

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.errors import UserError
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.engine import Engine
from orchestrator.serve.protocol import PredictionRequest, PredictionResponse
from orchestrator.storage.strict_json import finite
from orchestrator.tasks.task import Task

MARGIN = 16  # of tokens that a task adds to a row's


class PredictionEngine(Engine):
    """Predicts for rows, which the code that prepared the training data encodes."""

    path = "predict"
    purpose = "makes predictions"

    def __init__(self, job: Job, trained: TrainedModel) -> None:
        self.model_name = job.name
        self.trained = trained
        self.task, self.processor = trained.task, trained.processor
        left_out = dict.fromkeys(self.task.optional, "")
        self.nothing = dict.fromkeys(self.task.columns) | left_out

    def answer(self, request: PredictionRequest) -> PredictionResponse:
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

    @staticmethod
    def sample_request(task: Task[Any], prompt: str) -> dict[str, Any]:
        return {"inputs": [dict.fromkeys(task.inputs, prompt)]}

    @staticmethod
    def sample_answer(content: Any) -> str:
        return json.dumps(content["outputs"][0], ensure_ascii=False)

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
