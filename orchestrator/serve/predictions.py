"""`POST /v1/predict`: rows in, the task's replies out."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI

from orchestrator.data.arrays import Arrays
from orchestrator.data.columns import of_kind
from orchestrator.data.reading import Row
from orchestrator.errors import UserError
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.engine import Engine
from orchestrator.serve.protocol import PredictionRequest, PredictionResponse, require_model
from orchestrator.storage.strict_json import finite
from orchestrator.tasks.task import Task

MARGIN = 16  # the most tokens that a task adds to a row's own


class PredictionEngine(Engine):
    """Predicts for rows. The task cleans and encodes them as it did the training data."""

    path = "predict"
    purpose = "makes predictions"

    def __init__(self, job: Job, trained: TrainedModel) -> None:
        self.model_name = job.name
        self.trained = trained
        self.task, self.processor = trained.task, trained.processor
        # A row's columns until a request fills in the task's inputs: None where the target is.
        columns = self.task.columns
        optional = {c: of_kind(columns[c], None, optional=True) for c in self.task.optional}
        self.empty_row = dict.fromkeys(columns) | optional
        self.thread = ThreadPoolExecutor(max_workers=1)

    def add_routes(self, api: FastAPI) -> None:
        @api.post("/v1/predict")
        async def predict(request: PredictionRequest) -> PredictionResponse:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.thread, self.answer, request)

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)

    def answer(self, request: PredictionRequest) -> PredictionResponse:
        """Predict for each of the request's rows.

        Raises:
            UserError: if it names another model, or a row lacks a column or any content.
        """
        require_model(request.model, self.model_name)
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
        """Whether a row was cut at `max_seq_len`: with a larger one, more tokens are encoded."""
        size = sum(len(text.encode()) for text in row.values() if text) + MARGIN
        if size <= self.task.model.max_seq_len // 2:  # one of a row's texts may get only half of it
            return False
        larger = self.task.model.model_copy(update={"max_seq_len": 2 * size})
        task = type(self.task)(self.task.data, self.task.tokenizer, larger)
        uncut = task.encode([row], self.processor)
        lengths = [name for name in arrays if name.endswith("_length")]
        return any(uncut[name].max(initial=0) > arrays[name][number] for name in lengths)

    def _row(self, number: int, inputs: dict[str, str]) -> Row:
        """The cleaned row of a request's inputs.

        Raises:
            UserError: naming the input by its number, if it lacks a column or any content.
        """
        columns = set(self.task.inputs)
        if not columns - set(self.task.optional) <= set(inputs) <= columns:
            names = ", ".join(sorted(columns))
            raise UserError(
                f"inputs[{number}]: must hold {names}, not {', '.join(inputs) or 'nothing'}"
            )
        try:
            "".join(inputs.values()).encode()
        except UnicodeEncodeError:
            raise UserError(f"inputs[{number}]: is not valid Unicode") from None
        try:
            cleaned = self.task.clean({**self.empty_row, **inputs})
        except ValueError as error:
            raise UserError(f"inputs[{number}]: {error}") from None
        if cleaned is None:
            raise UserError(f"inputs[{number}]: holds nothing")
        return cleaned
