"""`orchestrator plan` as its user sees it. Nothing here starts Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.cli import main
from orchestrator.job.file import load_job
from orchestrator.plan.memory import BASE_OF_RAY
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData

JOB = {
    "name": "a",
    "task": "language_modelling",
    "data": {"source": "texts"},
    "tokenizer": {"vocab_size": 300},
    "model": {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": 16},
    "train": {"steps": 50, "global_batch_size": 8, "eval_rows": 4},
}
CLUSTER = {
    "cluster_name": "a",
    "max_workers": 2,
    "provider": {"type": "aws"},
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "labels": {"price-per-hour": "1"}},
        "worker": {
            "resources": {"CPU": 4, "memory": 8_000_000_000},
            "node_config": {},
            "max_workers": 2,
            "labels": {"price-per-hour": "3"},
        },
    },
}


@pytest.fixture(autouse=True)
def a_job_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("texts").mkdir()
    words = np.random.default_rng(0).choice(["some", "text", "of", "words"], 20_000)
    Path("texts/a.txt").write_text(" ".join(words))
    Path("job.yaml").write_text(yaml.safe_dump(JOB))
    Path("cluster.yaml").write_text(yaml.safe_dump(CLUSTER))


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", "job.yaml", "--json", *arguments]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", "job.yaml", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_tables_show_memory_time_and_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "job.yaml", "--cluster", "cluster.yaml", "--scale", "2,8"]) == 0
    told = capsys.readouterr().out
    for word in ("weights", "activations", "snapshot", "evaluate", "goodput", "predicted"):
        assert word in told
    (counts,) = [line for line in told.splitlines() if "workers " in line and "┃" in line]
    assert [cell.strip() for cell in counts.split("┃")[2:-1]] == ["1", "2", "8"]
    assert "predictions: docs/plan.md" in told


def test_figures_are_for_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "--scale", "4", "train.steps=30")
    model = load_job("job.yaml").build_task().build_model(300, 1)
    assert plan["prediction"] is True
    assert plan["parameters"]["total"] == model.num_parameters()
    assert plan["total_steps"] == 30 and plan["total_tokens"] == 30 * 8 * 16
    assert [row["workers"] for row in plan["scale"]] == [1, 4]
    assert plan["memory"]["total"] == pytest.approx(sum(plan["memory"]["parts"].values()))
    assert plan["scale"][0]["cost"] is None


def test_a_cluster_has_prices_and_a_head_beside_its_workers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = ("--cluster", "cluster.yaml", "cluster.workers=8")
    (row,) = planned(capsys, *cluster)["scale"]
    assert row["machines"] == 2
    assert row["cost"] == pytest.approx(7.0 * row["seconds"] / 3600)
    (row,) = planned(capsys, *cluster, "--price", "2")["scale"]
    assert row["cost"] == pytest.approx(6.0 * row["seconds"] / 3600)


def test_a_job_that_does_not_fit_is_planned_and_then_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = "train.global_batch_size=63"
    line = refused(capsys, "--cluster", "cluster.yaml", "cluster.workers=9", batch)
    assert "cluster.workers = 9" in line and "the most that fit are 8" in line
    rows = ("train.global_batch_size=400000", "train.micro_batch_size=400000")
    line = refused(capsys, "--cluster", "cluster.yaml", *rows)
    assert "worker's memory" in line and "train.micro_batch_size=" in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--scale", "8,x"), "--scale 8,x: x is no number of workers"),
        (("--scale", "0"), "0 is no number"),
        (("--scale", "8,"), "nothing is no number"),
        (("--price", "-1"), "--price -1: must be positive"),
        (("--network", "0"), "--network 0: must be positive"),
        (("--failures", "nan"), "--failures nan: must be positive"),
        (("--cluster", "none.yaml"), "--cluster none.yaml: No such file"),
        (("--cluster", "job.yaml"), "is no file for `ray up`"),
    ],
)
def test_a_wrong_option_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    assert problem in refused(capsys, *arguments)


def test_a_cluster_that_is_elsewhere_is_unknown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert main(["plan", "job.yaml", "cluster.workers=8"]) == 0
    assert "its machines are unknown" in " ".join(capsys.readouterr().out.split())


def test_ten_steps_are_timed_before_the_data_is_prepared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned(capsys, "--calibrate")
    measured = plan["calibration"]
    assert measured["steps"] == 10 and 0 < measured["seconds"] < 10
    assert measured["precision"] == plan["precision"]
    # The operations of a step in the measured time are the speed, and so is a step of the plan.
    assert plan["scale"][0]["step"] == pytest.approx(measured["seconds"])
    assert measured["peak_bytes"] > 100e6
    assert sorted(path.name for path in Path().iterdir()) == ["cluster.yaml", "job.yaml", "texts"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_what_ten_steps_take(capsys: pytest.CaptureFixture[str], precision: str) -> None:
    larger = ("model.d_model=128", "model.num_layers=3", "tokenizer.vocab_size=4096")
    batch = ("train.global_batch_size=128", "train.micro_batch_size=128")
    plan = planned(capsys, "--calibrate", f"train.precision={precision}", *larger, *batch)
    parts = plan["memory"]["parts"]
    here = plan["memory"]["total"] - parts["snapshot"] - BASE_OF_RAY
    process = parts["process"] - BASE_OF_RAY
    measured = plan["calibration"]["peak_bytes"]
    assert measured > 1.4 * process  # most of the rest is what is tested
    assert here == pytest.approx(measured, rel=0.15)


def test_steps_that_cannot_be_timed_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts/a.txt").write_text("too short")
    line = refused(capsys, "--calibrate")
    assert "not one sample with model.max_seq_len = 16" in line


def test_a_failed_calibration_names_its_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("broken.py").write_text(
        "from orchestrator.tasks.language_modelling import LanguageModelling\n"
        "class Broken(LanguageModelling):\n"
        "    def loss(self, model, batch):\n"
        "        raise ValueError('no loss today')\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert main(["plan", "job.yaml", "--calibrate", "task=broken:Broken"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --calibrate: ten steps failed here: ")
    assert "ValueError: no loss today" in line


def test_prepared_data_that_is_gone_is_told_and_assumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(load_job("job.yaml"))
    PreparedData(
        folder=run.prepare_folder(),
        seconds=1.0,
        summary="",
        processor="tokenizer.json",
        splits={"train": [], "validation": [], "test": []},
        documents={},
        source_bytes=1,
    ).commit()
    plan = planned(capsys)
    assert "the prepared data cannot be read, and is assumed" in plan["notes"][0]
    assert plan["parameters"]["vocab_size"] == 300
