"""A trained model predicts as its training validated it, in the precision that it is loaded in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data.shards import ShardReader
from orchestrator.errors import StageError
from orchestrator.evaluate.stage import _Predictor
from orchestrator.infer.precision import autocast, convert_weights
from orchestrator.infer.trained_model import TrainedModel, load_weights
from orchestrator.job.job import Job
from orchestrator.storage.artifact import Precision, PreparedData, Training
from orchestrator.storage.folder import Folder
from tests.unit.toy import newest, prepare_counting, toy_config, toy_task, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_scores_as_the_validation_did(
    prepared: PreparedData, tmp_path: Path, precision: Precision
) -> None:
    metrics = train(prepared, tmp_path, toy_config(eval_rows=9, precision=precision), dropout=0.5)
    trained = TrainedModel.load(
        toy_task(), prepared, newest(tmp_path), CPU, newest(tmp_path).precision
    )
    predictions = trained.predict(ShardReader(prepared, "validation").read(range(9)))
    assert trained.task.score(predictions) == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_computes_in_its_precision(
    prepared: PreparedData, tmp_path: Path, precision: Precision
) -> None:
    train(prepared, tmp_path, toy_config(steps=1))
    trained = TrainedModel.load(toy_task(), prepared, newest(tmp_path), CPU, precision)
    computed = set()

    def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        computed.add(output.dtype)

    trained.model.decoder.blocks[0].attention.query.register_forward_hook(note)  # type: ignore
    trained.predict(ShardReader(prepared, "test").read(np.arange(2)))
    assert computed == {torch.float32 if precision == "fp32" else torch.bfloat16}


def test_evaluation_computes_in_the_precision_of_the_training(
    prepared: PreparedData, tmp_path: Path
) -> None:
    train(prepared, tmp_path / "checkpoints", toy_config(steps=1, precision="bf16"))
    training = Training(
        folder=Folder(str(tmp_path)), seconds=0, summary="", steps=1, metrics={}, history=[],
        best_checkpoint="checkpoints/step-00000001", precision="bf16",
    ).commit()  # fmt: skip
    settings = {"name": "toy", "task": "language_modelling", "data": {"source": "toy"}}
    job = Job.model_validate(settings | {"model": toy_task().model.model_dump()})
    predictor = _Predictor(job, prepared.folder.uri, training.folder.uri)
    assert predictor.trained.precision == "bf16"
    assert len(predictor({"row": np.arange(2)})["nats"]) == 2


def test_columns_that_the_task_keeps_come_with_the_predictions(
    prepared: PreparedData, tmp_path: Path
) -> None:
    train(prepared, tmp_path, toy_config(steps=1))
    trained = TrainedModel.load(toy_task(), prepared, newest(tmp_path))
    texts = np.array(["a", "b"], dtype=object)
    arrays = ShardReader(prepared, "test").read(np.arange(2))
    assert trained.predict({**arrays, "text": texts})["text"] is texts


def test_a_checkpoint_of_another_model_is_refused(prepared: PreparedData, tmp_path: Path) -> None:
    train(prepared, tmp_path, toy_config(steps=1))
    with pytest.raises(StageError, match="is of another model"):
        load_weights(toy_task(d_model=8).build_model(257, 1), newest(tmp_path))


def test_a_checkpoint_that_is_not_the_one_that_was_saved_is_refused(
    prepared: PreparedData, tmp_path: Path
) -> None:
    train(prepared, tmp_path, toy_config(steps=1))
    checkpoint = newest(tmp_path)
    weights = bytearray(checkpoint.folder.read("model.safetensors"))
    weights[-1] ^= 1
    checkpoint.folder.write("model.safetensors", bytes(weights))
    with pytest.raises(StageError, match=r"model\.safetensors"):
        TrainedModel.load(toy_task(), prepared, checkpoint)


def test_weights_that_are_kept_in_bf16_change_no_bit() -> None:
    torch.manual_seed(0)
    model, tokens_BT = toy_task().build_model(257, 1).eval(), torch.arange(12).view(2, 6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    with torch.inference_mode(), autocast(CPU, "bf16"):
        converted = model(tokens_BT)
        convert_weights(model, "bf16")
        assert torch.equal(model(tokens_BT), converted)


def test_an_autocast_is_that_of_its_precision() -> None:
    for name in ("fp32", "bf16"):
        with autocast(CPU, name):
            assert torch.is_autocast_enabled("cpu") == (name == "bf16")
