"""The dashboard's reading of sweeps, and what its page gets: on folders as a sweep writes them."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from fastapi.testclient import TestClient

import orchestrator.storage.files
from orchestrator.dashboard import sweep as following
from orchestrator.dashboard.app import STATIC, make_app
from orchestrator.dashboard.catalog import Catalog
from orchestrator.dashboard.curves import columns, thinned
from orchestrator.dashboard.importance import importance
from orchestrator.dashboard.summary import find_best, summarize, time_left
from orchestrator.dashboard.sweep import FollowedSweep
from orchestrator.errors import UserError
from orchestrator.storage import lease
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Metric
from orchestrator.tune.findings import ranked
from orchestrator.tune.records import SweepRecord, Trial, request_stop
from tests.make_sweep import FINGERPRINT, plan, write_finished, write_start, write_trial

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look sees what is there at that moment."""
    monkeypatch.setattr(following, "PAUSE", 0.0)
    monkeypatch.setattr("orchestrator.dashboard.catalog.PAUSE", 0.0)
    monkeypatch.setattr("orchestrator.dashboard.catalog.PAUSE_ELSEWHERE", 0.0)


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "runs" / "reviews"))


@pytest.fixture
def folder(run: Folder) -> Folder:
    """A sweep that has just begun: two trials, of which one has ended."""
    record, trials = plan(trials=30)
    record.seconds = 10.0
    record.save(run / FINGERPRINT)
    for trial in trials[:2]:
        write_trial(run / FINGERPRINT, trial)
    return run / FINGERPRINT


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    (tmp_path / "runs").mkdir(exist_ok=True)
    catalog = Catalog(Folder(str(tmp_path / "runs")))
    with TestClient(make_app(catalog, None, None)) as made:
        yield made


def a_trial(number: int, loss: float | None = 0.5, **fields: Any) -> Trial:
    given: dict[str, Any] = {"configuration": number, "overrides": {"train.lr": 0.1 + number}}
    metrics = {} if loss is None else {"loss": loss}
    return Trial(number=number, metrics=metrics, **{**given, **fields})


def a_record(**fields: Any) -> SweepRecord:
    return plan(trials=1)[0].model_copy(update=fields)


def numbers(texts: list[str]) -> list[int]:
    return [json.loads(text)["number"] for text in texts]


# Reading


def test_a_viewer_gets_everything_once_and_then_what_changed(folder: Folder) -> None:
    sweep = FollowedSweep("reviews", folder)
    sweep.refresh()
    first = sweep.changes(0, "loss")
    assert (first.whole, first.complete, numbers(first.trials)) == (True, True, [0, 1])
    sweep.refresh()
    assert sweep.changes(first.cursor, "loss").trials == []
    write_trial(folder, a_trial(1, 0.25))
    write_trial(folder, a_trial(2))
    sweep.refresh()
    second = sweep.changes(first.cursor, "loss")
    assert not second.whole and numbers(second.trials) == [1, 2]
    assert json.loads(second.trials[0])["metrics"] == {"loss": 0.25}
    assert second.cursor > first.cursor


def test_only_files_that_changed_are_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, read, seen = FollowedSweep("reviews", folder), Folder.read, []

    def counted(self: Folder, name: str) -> bytes:
        seen.append(name)
        return read(self, name)

    sweep.refresh()
    monkeypatch.setattr(Folder, "read", counted)
    sweep.refresh()
    assert seen == []
    write_trial(folder, a_trial(1, 0.25))
    sweep.refresh()
    assert seen == ["trial-00001.json"]


def test_a_viewer_of_a_server_before_this_gets_everything_anew(folder: Folder) -> None:
    before = FollowedSweep("reviews", folder)
    before.refresh()
    cursor = before.changes(0, "loss").cursor
    time.sleep(0.01)
    after = FollowedSweep("reviews", folder)
    after.refresh()
    assert after.changes(cursor, "loss").whole


def test_trials_that_are_gone_are_forgotten(folder: Folder) -> None:
    sweep = FollowedSweep("reviews", folder)
    sweep.refresh()
    cursor = sweep.changes(0, "loss").cursor
    assert folder.local_path is not None
    (folder.local_path / "trial-00001.json").unlink()
    sweep.refresh()
    changes = sweep.changes(cursor, "loss")
    assert changes.whole and numbers(changes.trials) == [0]


def test_what_takes_long_to_read_comes_in_parts(folder: Folder) -> None:
    sweep = FollowedSweep("reviews", folder)
    sweep.refresh(reading=0.0)
    assert (sweep.complete, len(sweep.seen)) == (False, 1)
    sweep.refresh(reading=0.0)
    assert (sweep.complete, len(sweep.seen)) == (True, 2)


def test_a_file_that_is_no_trial_is_told_and_the_others_shown(folder: Folder) -> None:
    folder.write("trial-00007.json", b'{"number": 7')
    sweep = FollowedSweep("reviews", folder)
    sweep.refresh()
    assert sorted(sweep.seen) == [0, 1]
    assert summarize(sweep, live=False)["unreadable"] == ["trial-00007.json"]
    write_trial(folder, a_trial(7))
    sweep.refresh()
    assert 7 in sweep.seen and not sweep.unreadable


def test_sweeps_are_followed_on_storage_that_is_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(orchestrator.storage.files, "_filesystem", lambda _: store)
    (tmp_path / "bucket/runs/reviews").mkdir(parents=True)
    record, trials = plan(trials=3)
    write_finished(Folder(str(tmp_path / "bucket/runs/reviews")), record, trials)
    catalog = Catalog(Folder("toy://bucket/runs"))
    _, sweep = catalog.sweep("reviews", FINGERPRINT)
    assert sorted(sweep.seen) == [0, 1, 2]
    assert sweep.record is not None and sweep.record.state == "finished"


def test_a_run_alone_can_be_shown(run: Folder, folder: Folder) -> None:
    write_start(run, "orchestrator run job.yaml")
    catalog = Catalog(run)
    assert catalog.is_one_run
    assert [followed.name for followed in catalog.runs()] == ["reviews"]
    assert list(catalog.run("reviews").sweeps) == [FINGERPRINT]


@pytest.mark.parametrize("where", ["nowhere", "a.txt"])
def test_a_storage_that_is_none_is_the_users_mistake(tmp_path: Path, where: str) -> None:
    (tmp_path / "a.txt").write_text("no folder")
    with pytest.raises(UserError, match=where):
        Catalog(Folder(str(tmp_path / where)))
    with pytest.raises(UserError, match="moon://base"):
        Catalog(Folder("moon://base/runs"))


def test_the_folder_of_a_sweep_alone_is_none(folder: Folder) -> None:
    with pytest.raises(UserError, match="of its run"):
        Catalog(folder)


def test_no_name_leads_out_of_the_storage(tmp_path: Path, folder: Folder) -> None:
    write_finished(Folder(str(tmp_path / "secret")), *plan(trials=1))
    catalog = Catalog(Folder(str(tmp_path / "runs")))
    for name in ("../secret", "..", "", ".", str(tmp_path / "secret")):
        with pytest.raises(UserError, match="has no run"):
            catalog.run(name)


# Curves


def test_a_thinned_curve_keeps_its_ends_and_its_spikes() -> None:
    points = [{"step": step, "seconds": step / 10, "loss": 1.0} for step in range(5_000)]
    points[1234]["loss"], points[4321]["loss"] = 9.0, -3.0
    thin = thinned(columns(points), "loss", 100)
    assert len(thin["step"]) <= 102
    assert (thin["step"][0], thin["step"][-1]) == (0, 4999)
    assert {9.0, -3.0} <= set(thin["value"])
    at = thin["step"].index(1234)
    assert (thin["value"][at], thin["seconds"][at]) == (9.0, 123.4)


def test_what_is_no_finite_number_reaches_the_page_as_null(
    run: Folder, folder: Folder, client: TestClient
) -> None:
    curve = [{"step": 1, "seconds": 1.0, "loss": math.nan}, {"step": 2, "loss": math.inf}]
    write_trial(folder, a_trial(1, math.nan, curve=curve, overrides={"train.lr": -math.inf}))
    answer = client.get(f"/api/runs/reviews/sweeps/{FINGERPRINT}")
    trial = json.loads(answer.text, parse_constant=pytest.fail)["trials"][1]
    assert trial["metrics"] == {"loss": None} and trial["overrides"] == {"train.lr": "-Infinity"}
    assert trial["curve"] == {"step": [1, 2], "seconds": [1, None], "value": [None, None]}
    whole = client.get(f"/api/runs/reviews/sweeps/{FINGERPRINT}/trials/1")
    assert json.loads(whole.text, parse_constant=pytest.fail)["curve"]["loss"] == [None, None]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_link_in_place_of_a_log_shows_nothing(
    tmp_path: Path, folder: Folder, client: TestClient, is_folder: bool
) -> None:
    assert folder.local_path is not None
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "log.txt").write_text("a private key")
    place = folder.local_path / "trial-00001"
    if is_folder:
        place.symlink_to(secret)
    else:
        place.mkdir()
        (place / "log.txt").symlink_to(secret / "log.txt")
    answer = client.get(f"/api/runs/reviews/sweeps/{FINGERPRINT}/trials/1")
    assert answer.json()["log"] == ""


# How a sweep stands


def test_the_best_is_the_best_that_did_not_fail() -> None:
    trials = [a_trial(0, 0.5), a_trial(1, 0.1, state="failed"), a_trial(2, math.nan), a_trial(3)]
    best = find_best(a_record(), [*trials, a_trial(4, 0.4), a_trial(5, None)], None)
    assert best is not None and best.trial.number == 4
    best = find_best(a_record(mode="max"), trials, None)
    assert best is not None and best.trial.number == 0
    assert find_best(a_record(), trials[1:3], None) is None


def test_the_best_so_far_is_what_the_sweep_would_choose() -> None:
    record, trials = plan(trials=40)
    for trial in trials:
        trial.configuration = trial.number // 2
    trials[7].state = "running"
    metric = Metric("loss", "min")
    for count in (4, 15, 30, 40):
        best = find_best(record, trials[:count], None)
        finite = [t for t in trials[:count] if math.isfinite(t.metrics["loss"])]
        chosen = ranked(finite, metric)[0]
        assert best is not None
        assert (best.numbers, best.value) == (chosen.numbers, pytest.approx(chosen.value))


def test_a_finished_sweep_shows_what_it_chose(run: Folder) -> None:
    record, trials = plan(trials=8)
    folder = write_finished(run, record, trials)
    chosen = json.loads(folder.read("manifest.json"))
    chosen["best_trial"] = 6
    folder.write("manifest.json", json.dumps(chosen).encode())
    sweep = FollowedSweep("reviews", folder)
    sweep.refresh()
    assert summarize(sweep, live=False)["best"]["number"] == 6


def test_a_sweep_that_nobody_runs_is_interrupted(run: Folder, folder: Folder) -> None:
    write_trial(folder, a_trial(1, state="running", step=100))
    with lease.hold(run, "reviews"):
        followed, sweep = Catalog(run / "..").sweep("reviews", FINGERPRINT)
        shown = summarize(sweep, followed.is_live(sweep))
    assert (shown["state"], shown["live"]) == ("running", True)
    assert shown["counts"] == {"finished": 1, "running": 1}
    assert shown["resources"]["cpus"] == 2.0
    assert shown["progress"] == pytest.approx(1.5 / 30)
    assert shown["elapsed"] >= 10.0
    shown = summarize(sweep, followed.is_live(sweep))
    assert (shown["state"], shown["eta"]) == ("interrupted", None)
    assert shown["counts"] == {"finished": 1, "interrupted": 1}


def test_of_two_sweeps_that_run_by_their_records_the_newer_one_does(
    run: Folder, folder: Folder
) -> None:
    time.sleep(0.02)
    a_record().save(run / "tune-000000000000")
    with lease.hold(run, "reviews"):
        followed = Catalog(run / "..").run("reviews")
        for sweep in followed.sweeps.values():
            sweep.refresh()
        live = [name for name, sweep in followed.sweeps.items() if followed.is_live(sweep)]
    assert live == ["tune-000000000000"]


def test_the_time_left_follows_from_the_trials_so_far() -> None:
    record = a_record(trials=10, concurrent=2, steps=100)
    ended = [a_trial(n, state="finished", seconds=20.0) for n in range(4)]
    begun = [a_trial(9, state="running", step=50, seconds=10.0)]
    assert time_left(record, [], 0.0) is None
    assert time_left(record, begun, 10.0) == pytest.approx(9.5 * 20 / 2)
    assert time_left(record, ended + begun, 60.0) == pytest.approx(5.5 * 20 / 2)
    limited = record.model_copy(update={"minutes": 1.5})
    assert time_left(limited, ended + begun, 60.0) == pytest.approx(30.0)


def test_requests_show_until_they_are_served(run: Folder, folder: Folder) -> None:
    write_trial(folder, a_trial(1, state="running"))
    request_stop(folder, 1)
    request_stop(folder)
    sweep = FollowedSweep("reviews", folder)
    sweep.refresh()
    shown = summarize(sweep, live=True)
    assert (shown["stopping"], shown["stopping_trials"]) == (True, [1])
    assert not summarize(sweep, live=False)["stopping"]


# Routes


def test_runs_are_listed_with_their_sweeps(
    run: Folder, folder: Folder, client: TestClient, tmp_path: Path
) -> None:
    Folder(str(tmp_path / "runs" / "other" / "prepare-0123456789ab")).write("manifest.json", b"{}")
    Folder(str(tmp_path / "runs" / "notes")).write("a.txt", b"no run")
    runs = client.get("/api/runs").json()["runs"]
    assert [found["name"] for found in runs] == ["other", "reviews"]
    assert runs[0]["stages"] == {"prepare": "finished"} and runs[0]["sweeps"] == []
    assert runs[1]["sweeps"][0]["state"] == "interrupted"


def test_text_of_a_run_is_never_markup(folder: Folder, client: TestClient) -> None:
    write_trial(folder, a_trial(1, overrides={"model.activation": HOSTILE}, reason=HOSTILE))
    for path in ("", "/trials/1"):
        answer = client.get(f"/api/runs/reviews/sweeps/{FINGERPRINT}{path}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    scripts = [path.read_text() for path in STATIC.glob("*.js")]
    assert len(scripts) > 10
    assert not any("innerHTML" in s or "insertAdjacentHTML" in s or "eval(" in s for s in scripts)


def test_a_trial_comes_with_the_end_of_its_log(folder: Folder, client: TestClient) -> None:
    (folder / "trial-00001").write("log.txt", b"x" * 200_000 + "\nlast Zeile ä".encode())
    log = client.get(f"/api/runs/reviews/sweeps/{FINGERPRINT}/trials/1").json()["log"]
    assert log.endswith("last Zeile ä") and len(log) < 101_000
    assert client.get(f"/api/runs/reviews/sweeps/{FINGERPRINT}/trials/0").json()["log"] == ""


@pytest.mark.parametrize("path", ["x/sweeps/y", f"reviews/sweeps/{FINGERPRINT}/trials/99"])
def test_what_is_not_there_is_told_in_one_line(
    folder: Folder, client: TestClient, path: str
) -> None:
    answer = client.get(f"/api/runs/{path}")
    assert answer.status_code == 400
    assert "has no" in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_the_parameter_that_decides_is_the_most_important_one() -> None:
    record, trials = plan(trials=80)
    shares = importance(record, trials)
    assert next(iter(shares)) == "train.lr"
    assert set(shares) == set(record.space)
    assert sum(shares.values()) == pytest.approx(1)


def test_of_few_trials_no_importance_is_told() -> None:
    record, trials = plan(trials=3)
    assert importance(record, trials) == {}


def test_what_cannot_be_computed_is_empty() -> None:
    record, trials = plan(trials=20)
    record.space = {"train.lr": {"of another version": [0, 1]}}
    assert importance(record, trials) == {}
