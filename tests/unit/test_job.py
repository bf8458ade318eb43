"""The job: what makes a stage's result another one, overrides, and the schema for editors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.job.file import load_job
from orchestrator.job.fingerprint import fingerprint
from orchestrator.job.job import Job
from orchestrator.job.schema import json_schema
from orchestrator.job.yaml_text import parse_value
from orchestrator.progress import STAGES, Stage

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))


def make_job(**sections: Any) -> Job:
    data = {
        "name": "a",
        "task": "language_modelling",
        "data": {"source": "python-stdlib"},
        "tune": {"space": {"train.lr": {"choice": [0.1]}}},
    }
    return Job.model_validate(data | sections)


JOB = make_job()


def stages_changed_by(key: str, value: Any) -> set[Stage]:
    """The stages whose own settings, apart from what they read, change with a value."""
    other = JOB.override({key: value})
    return {stage for stage in STAGES if fingerprint(other, stage) != fingerprint(JOB, stage)}


# Fingerprints


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "b"),
        ("storage", "elsewhere"),
        ("cluster.workers", 2),
        ("cluster.cpus_per_worker", 2),
        ("cluster.gpus_per_worker", 1),
        ("cluster.max_failures", 0),
        ("train.micro_batch_size", 4),
        ("train.profile_steps", 10),
        ("data.max_bad_rows", 7),
        ("serve.replicas", 3),
    ],
)
def test_where_a_job_runs_and_how_it_is_cut_up_changes_no_result(key: str, value: Any) -> None:
    assert stages_changed_by(key, value) == set()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "elsewhere"),
        ("data.columns", {"text": "body"}),
        ("data.validation_fraction", 0.1),
        ("data.test_fraction", 0.1),
        ("data.max_document_bytes", 512),
        ("tokenizer.vocab_size", 512),
    ],
)
def test_the_data_and_its_tokenizer_change_only_what_is_prepared(key: str, value: Any) -> None:
    assert stages_changed_by(key, value) == {"prepare"}


def test_the_length_of_the_context_changes_the_blocks_and_the_model() -> None:
    assert stages_changed_by("model.max_seq_len", 64) == {"prepare", "tune", "train"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", 0.5),
        ("train.global_batch_size", 64),
        ("train.optimizer", "adamw"),
        ("train.seed", 1),
        ("train.betas", [0.5, 0.75]),
        ("train.precision", "fp32"),
        ("model.num_layers", 2),
        ("model.norm", "layernorm"),
    ],
)
def test_the_model_and_its_training_change_the_sweep_and_the_training(key: str, value: Any) -> None:
    assert stages_changed_by(key, value) == {"tune", "train"}


@pytest.mark.parametrize(("key", "value"), [("train.minutes", 9.0), ("train.steps", 9)])
def test_the_budget_changes_the_training_but_not_the_sweep(key: str, value: Any) -> None:
    assert stages_changed_by(key, value) == {"train"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tune.trials", 9),
        ("tune.steps", 9),
        ("tune.seed", 9),
        ("tune.scheduler", "none"),
        ("tune.space.train.lr", {"choice": [0.1, 0.2]}),
    ],
)
def test_the_sweep_changes_only_itself(key: str, value: Any) -> None:
    assert stages_changed_by(key, value) == {"tune"}


def test_another_task_changes_what_is_prepared() -> None:
    path = "orchestrator.tasks.language_modelling:LanguageModelling"
    assert stages_changed_by("task", path) == {"prepare"}


def test_stages_and_inputs_keep_fingerprints_apart() -> None:
    prints = {fingerprint(JOB, stage, inputs) for stage in STAGES for inputs in ("", "a", "b")}
    assert len(prints) == 3 * len(STAGES)


def test_a_job_that_is_changed_back_has_its_fingerprints_again() -> None:
    there_and_back = JOB.override({"train.lr": 0.5}).override({"train.lr": JOB.train.lr})
    assert [fingerprint(there_and_back, s) for s in STAGES] == [fingerprint(JOB, s) for s in STAGES]


def test_a_number_has_one_fingerprint_however_it_is_written() -> None:
    whole, decimal = make_job(train={"lr": 1}), make_job(train={"lr": 1.0})
    assert fingerprint(whole, "train") == fingerprint(decimal, "train")


# Overrides


def test_an_override_leaves_the_job_itself_and_all_other_values_alone() -> None:
    before = JOB.model_dump()
    other = JOB.override({"train.lr": 0.5, "model.d_ff": 64})
    assert (other.train.lr, other.model.d_ff) == (0.5, 64)
    assert JOB.model_dump() == before
    back = other.override({"train.lr": JOB.train.lr, "model.d_ff": None})
    assert back == JOB


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train.lr": -1}, "train.lr = -1"),
        ({"train.lr": float("nan")}, "train.lr = nan"),
        ({"train.lrr": 1}, "train.lrr"),
        ({"model.num_heads": 5}, "num_heads = 5"),
        ({"train.steps": 1, "train.minutes": 1.0}, "steps or minutes"),
        ({"train.steps": 1, "train.epochs": 1.0}, "steps or epochs"),
    ],
)
def test_a_wrong_override_is_named_in_one_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        JOB.override(values)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_job_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        JOB.train.lr = 1.0  # type: ignore[misc]


# The schema


def test_the_schema_knows_every_section_and_refuses_unknown_keys() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == {*Job.model_fields, "base"}
    assert schema["additionalProperties"] is False
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False
    references = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json_schema())
    assert set(references) == set(schema["$defs"])


def test_the_schema_is_valid_and_judges_the_ready_jobs_as_the_program_does() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in JOBS:
        assert list(validator.iter_errors(parse_value(path.read_text()))) == []
    assert list(validator.iter_errors({"train": {"lrr": 1}}))
    assert list(validator.iter_errors({"train": {"lr": -1}}))


# The ready jobs


def test_there_are_ready_jobs() -> None:
    assert JOBS


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_ready_job_is_accepted_and_builds_its_task(path: Path) -> None:
    job = load_job(str(path))
    assert job.problems() == []
    assert job.build_task().columns
