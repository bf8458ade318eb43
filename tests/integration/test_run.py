"""All stages through the command line, on a running cluster."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.dashboard import actions
from tests.integration.conftest import orchestrate, stages, write_job, write_texts
from tests.ray_head import Head

SWEEP = {"trials": 3, "steps": 8, "space": {"train.lr": {"loguniform": [1e-3, 1e-2]}}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_texts(folder / "data")
    job = write_job(folder, tune=SWEEP, cluster__workers=2)
    done = orchestrate("run", job, "--until", "evaluate", environment=head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return job


def test_every_stage_leaves_an_artifact(finished: Path, head: Head) -> None:
    results = stages(finished, head.environment)
    for stage in ("prepare", "tune", "train", "evaluate"):
        assert results[stage]["state"] == "finished"
        assert results[stage]["seconds"] > 0
        assert (Path(results[stage]["path"]) / "manifest.json").is_file()


def test_the_report_compares_the_model_with_its_baselines(finished: Path, head: Head) -> None:
    folder = Path(stages(finished, head.environment)["evaluate"]["path"])
    report = json.loads((folder / "report.json").read_text())
    assert set(report["metrics"]) == {"loss", "perplexity", "bits_per_byte"}
    assert set(report["baselines"]) == {"unigram", "bigram", "trigram"}
    assert report["metrics"]["loss"] < report["baselines"]["unigram"]["loss"]
    assert "learning_curve.png" in (folder / "report.md").read_text()
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_sweep_chose_the_best_trial_and_training_used_it(finished: Path, head: Head) -> None:
    results = stages(finished, head.environment)
    sweep = json.loads((Path(results["tune"]["path"]) / "manifest.json").read_text())
    assert len(sweep["trials"]) == 3
    best = min(sweep["trials"], key=lambda trial: trial["metrics"]["loss"])
    assert sweep["best"] == best["overrides"]
    report = json.loads((Path(results["evaluate"]["path"]) / "report.json").read_text())
    assert report["config"]["train"]["lr"] == sweep["best"]["train.lr"]


def test_a_finished_run_repeats_nothing_and_needs_no_cluster(finished: Path, head: Head) -> None:
    nowhere = head.environment | {"RAY_ADDRESS": "127.0.0.1:1"}
    started = time.monotonic()
    done = orchestrate("run", finished, "--until", "evaluate", environment=nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already finished") == 4
    assert time.monotonic() - started < 30


def test_training_leaves_tensorboard_files(finished: Path, head: Head) -> None:
    folder = Path(stages(finished, head.environment)["train"]["path"])
    events = list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert events and all(path.stat().st_size > 100 for path in events)


def test_a_changed_learning_rate_does_not_prepare_again(finished: Path, head: Head) -> None:
    changes = ["train.lr=0.5", "tune=null"]
    plan = orchestrate("status", finished, *changes, environment=head.environment)
    prepare, train = (
        next(line for line in plan.stdout.splitlines() if f" {stage} " in line)
        for stage in ("prepare", "train")
    )
    assert "finished" in prepare
    assert "pending" in train


def test_more_workers_than_the_cluster_has_is_an_error_of_one_line(
    tmp_path: Path, head: Head
) -> None:
    write_texts(tmp_path / "data")
    job = write_job(tmp_path, cluster__workers=8)
    done = orchestrate("train", job, environment=head.environment)
    assert done.returncode == 2
    assert "cluster.workers = 8" in done.stderr and "there is room for 4 " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unreachable_cluster_is_an_error_of_one_line(tmp_path: Path, head: Head) -> None:
    write_texts(tmp_path / "data")
    nowhere = head.environment | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = orchestrate("prepare", write_job(tmp_path), environment=nowhere)
    assert done.returncode == 75
    assert "RAY_ADDRESS=127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_the_dashboard_resumes_runs_no_code_of_its_folder(
    tmp_path: Path, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers run none either, though Ray by default puts that folder first on their path."""
    write_texts(tmp_path / "data")
    write_job(tmp_path, train__steps=3)
    (tmp_path / "orchestrator").mkdir()
    planted = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + ' ')\nraise SystemExit(1)\n"
    for name in ("orchestrator/__init__", "sitecustomize", "torch", "pyarrow", "safetensors"):
        (tmp_path / f"{name}.py").write_text(planted)
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator", "train", "job.yaml"],
        cwd=tmp_path, env=actions._environment(), capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    ran = (tmp_path / "ran").read_text() if (tmp_path / "ran").exists() else ""
    assert (done.returncode, ran) == (0, ""), done.stdout + done.stderr
