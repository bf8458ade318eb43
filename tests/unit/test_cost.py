"""What a training costs, and when it pays to compile it."""

import shutil
from typing import Any

import pytest

from orchestrator.job.cost import compiles, num_parameters, tokens_seen, train_seconds
from orchestrator.job.job import Job
from orchestrator.job.task_registry import TASKS

GPU = {"gpus_per_worker": 1}


def make(task: str = "language_modelling", **sections: Any) -> Job:
    return Job.model_validate({"name": "a", "task": task, "data": {"source": "x"}, **sections})


@pytest.fixture(autouse=True)
def a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def test_a_long_training_of_one_shape_is_compiled_and_a_short_one_is_not() -> None:
    assert compiles(make(train={"minutes": 60}))
    assert not compiles(make(train={"minutes": 5}))
    assert compiles(make(train={"minutes": 5}, cluster=GPU))


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"language_modelling"}))
def test_samples_of_many_lengths_are_compiled_only_where_the_job_says_so(task: str) -> None:
    assert not compiles(make(task, train={"minutes": 600}, cluster=GPU))
    assert compiles(make(task, train={"minutes": 1, "compile": True}))


def test_without_a_compiler_nothing_is_compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not compiles(make(train={"minutes": 600}))
    assert compiles(make(train={"minutes": 600}, cluster=GPU))


def test_steps_and_minutes_are_the_same_cost_in_other_words() -> None:
    by_steps = make(train={"steps": 1000, "global_batch_size": 16})
    assert tokens_seen(by_steps) == pytest.approx(1000 * 16 * by_steps.model.max_seq_len)
    minutes = train_seconds(by_steps) / 60
    assert tokens_seen(make(train={"minutes": minutes})) == pytest.approx(tokens_seen(by_steps))


@pytest.mark.parametrize("task", ["language_modelling", "translation", "text_classification"])
def test_parameters_are_about_those_of_the_model(task: str) -> None:
    job = make(task, model={"size": "small"})
    model = job.build_task().build_model(job.tokenizer.vocab_size, 2)
    assert num_parameters(job) == pytest.approx(model.num_parameters(), rel=0.25)
