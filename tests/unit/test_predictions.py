"""Predictions: what a text is told that the model did not read whole."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.snapshot import Snapshot, pack
from orchestrator.serve.predictions import PredictionEngine
from orchestrator.serve.protocol import PredictionRequest
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder

ROWS: dict[str, dict[str, str]] = {
    "text_classification": {"text": "a good one", "label": "yes"},
    "extractive_question_answering": {
        "context": "a dog sleeps",
        "question": "who",
        "answer": "dog",
        "answer_start": "2",
    },
    "question_answering": {"context": "a dog sleeps", "question": "who", "answer": "dog"},
}


def engine_for(folder: Folder, task_name: str) -> PredictionEngine:
    model = {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": 24}
    data = {"source": "python-stdlib"}
    job = Job.model_validate({"name": "a", "task": task_name, "data": data, "model": model})
    task = job.build_task()
    row = task.clean(ROWS[task_name])
    assert row is not None
    processor = task.fit_processor([row] * 20)
    (folder / "prepare").write(processor.file_name, processor.to_bytes())
    prepared = PreparedData(
        folder=folder / "prepare", seconds=0, summary="", processor=processor.file_name,
        splits={}, documents={}, source_bytes=0,
    )  # fmt: skip
    torch.manual_seed(0)
    weights = task.build_model(processor.vocab_size, processor.num_outputs).state_dict()
    checkpoints = Checkpoints(folder / "train", task.metric)
    checkpoints.save(
        Snapshot(
            step=1, total_steps=1, model=pack(weights), optimizer=pack({}), metrics={}, history=[],
            samples="", precision="fp32", notices=[],
        )
    )  # fmt: skip
    checkpoints.finish()
    training = Training(
        folder=folder / "train", seconds=0, summary="", best_checkpoint="step-00000001", steps=1,
        metrics={}, history=[], precision="fp32",
    )  # fmt: skip
    trained = TrainedModel.load(task, prepared, training.checkpoint())
    return PredictionEngine(job, trained)


@pytest.mark.parametrize("task_name", ROWS)
def test_a_text_that_was_cut_says_so(tmp_path: Path, task_name: str) -> None:
    engine = engine_for(Folder(str(tmp_path)), task_name)
    short = {name: ROWS[task_name][name] for name in engine.task.inputs}
    rows: list[dict[str, Any]] = [short]
    rows += [short | {name: "z" * 40} for name in engine.task.inputs]
    answer = engine.answer(PredictionRequest(inputs=rows))
    assert [output.get("truncated") for output in answer.outputs] == [
        None,
        *[True] * (len(rows) - 1),
    ]


def test_a_text_that_fits_just_so_is_whole(tmp_path: Path) -> None:
    engine = engine_for(Folder(str(tmp_path)), "text_classification")
    rows = [{"text": "z" * length} for length in (23, 24, 25)]  # and a space before it
    answer = engine.answer(PredictionRequest(inputs=rows))
    tokens = [len(engine.processor.text.encode(row["text"])) for row in rows]
    cut = [output.get("truncated", False) for output in answer.outputs]
    assert cut == [count > 24 for count in tokens] and any(cut) and not all(cut)
