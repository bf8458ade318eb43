"""Small models of one pass with random weights, behind the endpoint."""

from typing import Any

import torch
from fastapi import FastAPI

from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.app import make_app
from orchestrator.serve.metrics import UNOBSERVED, Observer
from orchestrator.serve.predictions import PredictionEngine

CONTEXT = "The dog sleeps under the old tree. A cat watches it from the wall, and it rains."
ROWS: dict[str, list[dict[str, str]]] = {
    "text_classification": [
        {"text": "a good one, and a long one too", "label": "yes"},
        {"text": "a bad one", "label": "no"},
        {"text": "nobody knows", "label": "perhaps"},
    ],
    "text_regression": [{"text": "five stars", "number": "5"}, {"text": "one", "number": "1"}],
    "masked_language_modelling": [{"text": CONTEXT}],
    "extractive_question_answering": [
        {"context": CONTEXT, "question": "Who sleeps?", "answer": "dog", "answer_start": "4"}
    ],
    "question_answering": [{"context": CONTEXT, "question": "Who sleeps?", "answer": "dog"}],
    "translation": [{"source": "the dog sleeps", "target": "der Hund schläft"}],
}


def trained_for(task_name: str, serve: Any = None, **model: Any) -> tuple[Job, TrainedModel]:
    """A job and a model of it that has learned nothing: its matrices are random, none is 0."""
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 2, "max_seq_len": 64, **model}
    data = {"source": "python-stdlib"}
    job = Job.model_validate(
        {"name": "tiny", "task": task_name, "data": data, "model": sizes, "serve": serve or {}}
    )
    task = job.build_task()
    cleaned = [task.clean(row) for row in ROWS[task_name]]
    processor = task.fit_processor([row for row in cleaned if row is not None] * 20)
    torch.manual_seed(0)
    transformer = task.build_model(processor.vocab_size, processor.num_outputs).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return job, TrainedModel(task, processor, transformer)


def app_for(
    task_name: str, serve: Any = None, observer: Observer = UNOBSERVED, **options: Any
) -> tuple[FastAPI, PredictionEngine]:
    job, trained = trained_for(task_name, serve)
    engine = PredictionEngine(job, trained, observer)
    return make_app(job.name, engine, inputs=trained.task.inputs, **options), engine
