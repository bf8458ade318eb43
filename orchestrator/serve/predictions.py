"""The engine of tasks of one pass. `POST /v1/predict`: rows in, the task's replies out."""

import json
from typing import Any

from fastapi import FastAPI, Request

from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve import embeddings, hugging_face, playground
from orchestrator.serve.connection import unless_client_leaves
from orchestrator.serve.engine import Engine
from orchestrator.serve.metrics import UNOBSERVED, Observer
from orchestrator.serve.predictor import Predictor
from orchestrator.serve.protocol import PredictionRequest, PredictionResponse, require_model
from orchestrator.tasks.task import Task


class PredictionEngine(Engine):
    """Predicts for rows, and embeds texts if the model is an encoder."""

    path = "predict"
    purpose = "makes predictions"

    def __init__(self, job: Job, trained: TrainedModel, observer: Observer = UNOBSERVED) -> None:
        self.predictor = Predictor(job, trained, observer)
        self._description = playground.Description(
            model=job.name, task=job.task, inputs=playground.inputs_of(trained.task)
        )

    def add_routes(self, api: FastAPI) -> None:
        predictor = self.predictor

        @api.post("/v1/predict")
        async def predict(request: PredictionRequest, http: Request) -> PredictionResponse:
            require_model(request.model, predictor.model_name)
            predictions = await unless_client_leaves(http, predictor.predict(request.inputs))
            return PredictionResponse(
                model=predictor.model_name, outputs=[predictor.reply(p) for p in predictions]
            )

        embedder = embeddings.embedder_of(predictor)
        if embedder is not None:
            embeddings.add_routes(api, embedder)
        hugging_face.add_routes(api, predictor, embedder)
        playground.add_routes(api, self._description)

    def close(self) -> None:
        self.predictor.close()

    @staticmethod
    def sample_request(task: Task[Any], prompt: str) -> dict[str, Any]:
        return {"inputs": [dict.fromkeys(task.inputs, prompt)]}

    @staticmethod
    def sample_answer(content: Any) -> str:
        return json.dumps(content["outputs"][0], ensure_ascii=False)
