"""Sample lines: what a model makes of a validation row, without a trace in the training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.learn import samples as samples_module
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks import samples
from orchestrator.tasks.task import Task
from tests.unit.toy import Listener, ending, prepare_counting, toy_config, toy_task, train


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_samples_change_no_bit_of_a_training(
    prepared: PreparedData, tmp_path: Path, precision: str, optimizer: str
) -> None:
    config = toy_config(eval_every=3, precision=precision, optimizer=optimizer)
    listener = Listener(wants_samples=True)
    train(prepared, tmp_path / "with", config, listener, dropout=0.3)
    train(prepared, tmp_path / "without", config, Listener(), dropout=0.3)
    assert ending(tmp_path / "with") == ending(tmp_path / "without")
    steps = [sample["step"] for sample in listener.heard("sample")]
    assert steps[0] == 3 and steps[-1] == 12


def test_samples_take_no_more_than_their_share_of_the_time(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "SHARE", 0.0)
    listener = Listener(wants_samples=True)
    train(prepared, tmp_path, toy_config(eval_every=1), listener)
    assert [sample["step"] for sample in listener.heard("sample")] == [1, 12]


def test_a_sample_that_fails_ends_the_sampling_and_not_the_training(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        raise RuntimeError("no room")

    monkeypatch.setattr(type(toy_task()), "sample", fail)
    listener = Listener(wants_samples=True)
    assert train(prepared, tmp_path, toy_config(eval_every=1), listener) is not None
    assert listener.heard("sample failed") == [{"step": 1, "error": "RuntimeError: no room"}]


def test_a_task_of_other_than_text_has_no_samples() -> None:
    assert Task.sample(toy_task(), None, {}, None) is None  # type: ignore[arg-type]


def test_a_sample_is_the_beginning_of_a_text_and_its_continuation(prepared: PreparedData) -> None:
    task = toy_task()
    processor = task.load_processor(prepared.folder.read(prepared.processor))
    tokens = torch.tensor([processor.encode("abcdefghi")])
    model = task.build_model(processor.vocab_size, 1).eval()
    before = torch.random.get_rng_state()
    text = task.sample(model, {"tokens": tokens}, processor)
    assert text is not None and text.startswith("abcd → ")  # half of the context
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_slow_model_writes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SECONDS", 0.0)
    assert samples._in_time(iter(range(100))) == [0]


def test_a_sample_is_one_line_of_limited_length() -> None:
    text = samples.line("a\n\n b\t" * 100, "x" * 1000)
    assert text.startswith("a b a b") and "\n" not in text
    assert len(text) <= 2 * samples.LONGEST + 3
