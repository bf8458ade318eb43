"""Every task, found by its name: what each must be able to do, and what none may forget."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.data.shards import ShardReader, write_shard
from orchestrator.infer.batch import kept_columns, to_device
from orchestrator.job.job import Job
from orchestrator.job.sections import TrainConfig
from orchestrator.job.task_registry import TASKS
from orchestrator.learn.optimizer import build_optimizers
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

CPU = torch.device("cpu")
SCRIPTS = [
    "naïve café",
    "机器学习 很有趣。",
    "مرحبا بالعالم",
    "emoji 👩‍👩‍👧 here",
    "plain words, twice",
]
TINY = {"num_layers": 2, "d_model": 32, "num_heads": 2, "max_seq_len": 32}


def rows_of(name: str) -> list[Row]:
    """Rows of a task: two labels or a reversed text, in many scripts."""
    texts = [f"{text} {i}" for i in range(4) for text in SCRIPTS]
    values = {
        "text": lambda i, text: text * (5 if name == "language_modelling" else 1),
        "label": lambda i, text: "even" if i % 2 else "odd",
        "source": lambda i, text: text,
        "target": lambda i, text: text[::-1],
        "context": lambda i, text: f"{i} or {text}",
        "question": lambda i, text: str(i),
        "answer": lambda i, text: text[:4],
        "answer_start": lambda i, text: str(len(f"{i} or ")),
        "number": lambda i, text: str(i),
    }
    columns = task_of(name).columns
    return [{c: values[c](i, text) for c in columns} for i, text in enumerate(texts)]


def task_of(name: str, **model: Any) -> Task[Any]:
    job = {
        "name": "a",
        "task": name,
        "data": {"source": "x"},
        "tokenizer": {"vocab_size": 300},
        "model": {**TINY, **model},
    }
    return Job.model_validate(job).build_task()


@pytest.fixture(params=sorted(TASKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Case:
    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.task = task_of(name)
        cleaned = [self.task.clean(row) for row in rows_of(name)]
        self.rows = [row for row in cleaned if row is not None]
        self.processor = self.task.fit_processor(self.rows)
        self.arrays: Arrays = self.task.encode(self.rows, self.processor)
        self.batch = to_device(self.arrays, CPU)
        self.kept = self.task.keep(self.rows)
        sizes = self.processor.vocab_size, self.processor.num_outputs
        self.model = self.task.build_model(*sizes)


@pytest.fixture
def case(name: str) -> Case:
    return Case(name)


def test_rows_become_arrays_of_fixed_shapes_that_a_shard_keeps(case: Case, tmp_path: Path) -> None:
    counts = {len(array) for array in case.arrays.values()}
    assert len(counts) == 1 and counts != {0}
    none = case.task.encode([], case.processor)
    assert {k: v.shape[1:] for k, v in none.items()} == {
        k: v.shape[1:] for k, v in case.arrays.items()
    }
    assert write_shard(Folder(str(tmp_path)), "a.arrow", case.arrays).rows in counts


def test_a_processor_comes_back_from_its_bytes(case: Case) -> None:
    again = case.task.load_processor(case.processor.to_bytes())
    assert again.to_bytes() == case.processor.to_bytes()
    encoded = case.task.encode(case.rows, again)
    assert all(np.array_equal(encoded[k], v) for k, v in case.arrays.items())


def test_the_loss_is_a_finite_sum_over_its_terms(case: Case) -> None:
    loss, count = case.task.loss(case.model, case.batch)
    assert loss.isfinite() and count > 0 and loss.dtype == count.dtype == torch.float32
    if case.task.loss(case.model, case.batch)[0] != loss:
        return  # it hides other tokens each time
    halves = [
        case.task.loss(case.model, {k: v[part] for k, v in case.batch.items()})
        for part in (slice(0, 3), slice(3, None))
    ]
    torch.testing.assert_close(sum(h[0] for h in halves), loss, rtol=1e-4, atol=1e-4)
    assert sum(h[1] for h in halves) == count


def test_it_learns_a_batch_by_heart(case: Case) -> None:
    config = TrainConfig(lr=0.02, weight_decay=0.0)
    optimizers = build_optimizers(case.model, config, World())
    losses: list[float] = []
    while not losses or (losses[-1] > losses[0] / 5 and len(losses) < 300):
        loss, count = case.task.loss(case.model, case.batch)
        losses.append((loss / count).item())
        (loss / count).backward()
        for optimizer in optimizers:
            optimizer.step(config.lr, torch.tensor(True))
        case.model.zero_grad()
    assert losses[-1] <= losses[0] / 5


@torch.inference_mode()
def test_predictions_are_scored_by_row_and_the_metric_is_among_the_scores(case: Case) -> None:
    case.model.eval()
    found = case.task.predict(case.model, case.batch, case.processor)
    found |= case.task.answer(case.model, case.batch, case.processor)
    assert {len(values) for values in found.values()} == {len(next(iter(case.arrays.values())))}
    scores = case.task.score(found | case.kept)
    assert case.task.metric.name in scores
    assert all(np.isfinite(value) for value in scores.values())


TEXT_TASKS = {name for name in TASKS if name not in ("text_classification", "text_regression")}


@torch.inference_mode()
def test_tasks_that_predict_text_show_a_sample_of_the_first_row(case: Case, name: str) -> None:
    case.model.eval()
    before = torch.random.get_rng_state()
    text = case.task.sample(case.model, case.batch, case.processor)
    assert (text is not None) == (name in TEXT_TASKS)
    if text is not None:
        given, _ = text.split(" → ")
        assert given and "\n" not in text
        assert given.split()[0] in str(case.rows[0])
    assert torch.equal(torch.random.get_rng_state(), before)


@torch.inference_mode()
def test_a_request_brings_its_inputs_alone_and_gets_plain_json(case: Case) -> None:
    if case.task.serves != "predictions":
        return  # it completes text
    case.model.eval()
    row = {c: ("naïve 机器" if c in case.task.inputs else None) for c in case.task.columns}
    cleaned = case.task.clean(row)
    assert cleaned is not None
    batch = to_device(case.task.encode([cleaned], case.processor), CPU)
    found = case.task.predict(case.model, batch, case.processor)
    found |= case.task.answer(case.model, batch, case.processor)
    reply = case.task.reply(found, 0, case.processor)
    assert json.loads(json.dumps(reply)) == reply and reply


@torch.inference_mode()
def test_baselines_are_scored_as_the_model_is(case: Case) -> None:
    predicted = case.task.predict(case.model, case.batch, case.processor)
    scores = set(case.task.score(predicted | case.kept))
    test = case.arrays | case.kept
    for metrics in case.task.baselines(case.arrays, test, case.processor).values():
        assert set(metrics) <= scores | {"bleu", "chrf", "f1"}
        assert all(np.isfinite(value) for value in metrics.values())


def test_what_is_kept_beside_the_arrays_comes_back_from_a_shard(case: Case, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    shard = write_shard(folder, "test-0.arrow", case.arrays | case.kept)
    prepared = PreparedData.model_construct(folder=folder, splits={"test": [shard]})
    arrays = ShardReader(prepared, "test").read([1, 0])
    found = kept_columns(arrays)
    assert found.keys() == case.kept.keys()
    assert all(found[k].tolist() == v[[1, 0]].tolist() for k, v in case.kept.items())
    assert to_device(arrays, CPU).keys() == case.arrays.keys()


def test_what_holds_nothing_is_dropped(case: Case) -> None:
    assert case.task.clean(dict.fromkeys(case.task.columns, " ")) is None


def test_a_task_refuses_a_family_that_is_not_its_own(name: str) -> None:
    families = {"decoder", "encoder", "encoder_decoder"} - set(task_of(name).families)
    for family in families:
        with pytest.raises(Exception, match=f"model.family = {family}"):
            task_of(name, family=family)


def test_a_document_without_a_token_leaves_no_masked_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = task_of("masked_language_modelling")
    processor = task.fit_processor([{"text": "ab"}])
    found = [([], []), ([5, 6], [1, 1])]
    monkeypatch.setattr(processor, "encode_with_bytes", lambda texts: found)
    arrays = task.encode([{"text": "\x00"}, {"text": "ab"}], processor)
    assert {name: len(array) for name, array in arrays.items()} == dict.fromkeys(arrays, 1)
    assert arrays["bytes"].tolist() == [2]


def test_masked_pieces_of_a_document_hold_all_of_its_bytes() -> None:
    task = task_of("masked_language_modelling", max_seq_len=4)
    processor = task.fit_processor([{"text": text} for text in SCRIPTS])
    arrays = task.encode([{"text": text} for text in SCRIPTS], processor)
    assert len(arrays["bytes"]) > len(SCRIPTS)
    assert arrays["bytes"].sum() == sum(len(text.encode()) for text in SCRIPTS)
    assert arrays["bytes"].min() > 0
