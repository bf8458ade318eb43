"""`serve.engine: vllm`: what it refuses, and what Ray Serve gets. vLLM itself is not installed."""

from pathlib import Path
from typing import Any

import pytest
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

from orchestrator.application import Arguments, application
from orchestrator.errors import UserError
from orchestrator.job.file import load_job
from orchestrator.job.job import Job
from orchestrator.serve.engines import check_vllm
from orchestrator.serve.vllm import serving_args
from orchestrator.storage.folder import Folder
from tests.unit.served import JOB

ENVIRONMENT = {"py_executable": "/opt/vllm/bin/python"}
SERVE = {"engine": "vllm", "vllm": {"runtime_env": ENVIRONMENT}}


def job_with(serve: dict[str, Any], **changes: Any) -> Job:
    given = JOB.model_dump(exclude_unset=True)
    return Job.model_validate(given | {"serve": {**SERVE, **serve}} | changes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("serve: {engine: vllm}", "serve.engine = vllm: say where vLLM is installed"),
        ("serve: {vllm: {runtime_env: {pip: [vllm]}}}", "serve.vllm: is not used"),
        ("serve: {engine: vlm}", "did you mean vllm"),
        ("serve: {engine: vllm, vllm: {runtime_env: {}}}", "serve.vllm.runtime_env"),
        (
            "serve: {engine: vllm, weights: int8, vllm: {runtime_env: {pip: [vllm]}}}",
            "serve.weights: Ray Serve's deployment of vLLM does not have it",
        ),
        (
            "serve: {engine: vllm, log: {share: 1}, vllm: {runtime_env: {pip: [vllm]}}}",
            "serve.log: Ray Serve's deployment of vLLM does not have it",
        ),
        (
            "serve: {engine: vllm, gpus_per_replica: 0.5, vllm: {runtime_env: {pip: [vllm]}}}",
            "serve.gpus_per_replica = 0.5: vLLM takes whole GPUs",
        ),
    ],
)
def test_a_job_that_vllm_cannot_serve_is_refused_in_one_line(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"task: language_modelling\ndata: {{source: s}}\n{text}\n")
    with pytest.raises(UserError, match=r"job\.yaml:3:\d+: ") as raised:
        load_job(str(path), [])
    assert problem in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_keys_are_refused_since_nothing_would_check_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("0" * 64 + "\n")
    ((key, problem),) = job_with({"keys": str(keys)}).problems()
    assert key == ("serve", "keys") and "delete it" in problem


def test_only_decoders_are_served() -> None:
    job = job_with({}, task="translation", model={"num_layers": 1})
    ((key, problem),) = job.problems()
    assert key == ("serve", "engine") and "encoder_decoder" in problem


def test_a_model_without_an_architecture_of_hugging_faces_is_refused() -> None:
    job = job_with({}, model={"positions": "sinusoidal"})
    with pytest.raises(UserError, match="positions = sinusoidal"):
        check_vllm(job)
    check_vllm(job_with({}))
    check_vllm(JOB)


def test_what_ray_serve_gets_is_what_it_takes() -> None:
    job = job_with(
        {
            "replicas": 3,
            "gpus_per_replica": 1,
            "slots": 8,
            "vllm": {"runtime_env": ENVIRONMENT, "engine_kwargs": {"dtype": "float32"}},
        }
    )
    assert job.problems() == []
    (config,) = serving_args(job, Folder("/runs/tiny/train-1/export"))["llm_configs"]
    checked = LLMConfig.model_validate(config)
    assert checked.model_id == "tiny"
    assert checked.model_loading_config.model_source == "/runs/tiny/train-1/export"
    assert checked.runtime_env == ENVIRONMENT
    assert checked.engine_kwargs == {"max_model_len": 64, "max_num_seqs": 8, "dtype": "float32"}
    assert checked.deployment_config["num_replicas"] == 3
    assert checked.placement_group_config == {"bundle_per_worker": {"CPU": 1, "GPU": 1}}


def test_an_export_in_a_bucket_is_copied_and_another_storage_refused() -> None:
    job = job_with({})
    (config,) = serving_args(job, Folder("s3://bucket/runs/export"))["llm_configs"]
    checked = LLMConfig.model_validate(config)
    source: Any = checked.model_loading_config.model_source
    assert source.bucket_uri == "s3://bucket/runs/export"
    assert checked.accelerator_config is not None and checked.accelerator_config.kind == "cpu"
    with pytest.raises(UserError, match="hdfs://x/export"):
        serving_args(job, Folder("hdfs://x/export"))


def test_a_config_file_of_ray_serve_names_vllms_application_itself(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    serve = "{engine: vllm, open: true, vllm: {runtime_env: {pip: [vllm]}}}"
    path.write_text(f"task: language_modelling\ndata: {{source: s}}\nserve: {serve}\n")
    with pytest.raises(UserError, match=r"ray\.serve\.llm:build_openai_app"):
        application(Arguments(job=str(path)))
