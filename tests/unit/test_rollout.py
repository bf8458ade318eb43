"""What was served when; the gate; a trial's length; how replicas are asked for."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.entry import main
from orchestrator.errors import StageError, UserError
from orchestrator.job.file import load_job
from orchestrator.job.fingerprint import fingerprint
from orchestrator.job.job import Job
from orchestrator.serve.history import Deployment, History, commit_here, now
from orchestrator.serve.release import Release
from orchestrator.serve.rollout import check_gate, watch
from orchestrator.serve.samples import Sample
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Metric

JOB = "name: a\ntask: language_modelling\ndata: {source: python-stdlib}\n"
A, B, C = "a" * 12, "b" * 12, "c" * 12


def load(tmp_path: Path, serve: str = "") -> Job:
    file = tmp_path / "job.yaml"
    file.write_text(f"{JOB}storage: {tmp_path}/runs\nserve: {{{serve}}}\n")
    return load_job(str(file))


def deployment(number: int, version: str, job: Job, **fields: Any) -> Deployment:
    given: dict[str, Any] = {
        "number": number,
        "version": version,
        "action": "updated",
        "outcome": "serving",
        "started": now(),
        "prepared": "runs/a/prepare-1",
        "training": "runs/a/train-1",
        "checkpoint": "checkpoints/step-1",
        "metric": "bits_per_byte",
        "metrics": {"bits_per_byte": 1.5},
        "source": "python-stdlib",
        "job": job.model_dump(mode="json"),
    }
    return Deployment(**given | fields)


def written(tmp_path: Path, *steps: tuple[str, str, str]) -> History:
    """A history of deployments: version, action, outcome."""
    job = load(tmp_path)
    history = History(Folder(str(tmp_path / "runs" / "a")))
    for number, (version, action, outcome) in enumerate(steps, 1):
        history.write(deployment(number, version, job, action=action, outcome=outcome))
    return history


def test_a_deployment_is_read_back_with_its_settings(tmp_path: Path) -> None:
    history = written(tmp_path, (A, "deployed", "serving"))
    [read] = history.read()
    assert read.settings() == load(tmp_path)
    assert history.of(A) == read and history.of(B) is None


def test_the_version_before_is_the_last_that_served(tmp_path: Path) -> None:
    history = written(
        tmp_path,
        (A, "deployed", "serving"),
        (B, "updated", "refused"),
        (C, "updated", "serving"),
        (C, "updated", "serving"),
    )
    before = history.before(C)
    assert before is not None and before.version == A
    assert history.before(A) is None and history.before(B) is None


def test_who_rolls_back_twice_goes_back_twice(tmp_path: Path) -> None:
    served = [(A, "deployed", "serving"), (B, "updated", "serving"), (C, "updated", "serving")]
    history = written(tmp_path, *served, (B, "rolled back", "serving"))
    before = history.before(B)
    assert before is not None and before.version == A


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    history = written(tmp_path, (A, "deployed", "serving"))
    history.folder.write("000002.json", b"{")
    with pytest.raises(UserError, match=r"served/000002.json is damaged .*: delete it"):
        history.read()


def test_settings_of_another_release_are_refused_in_one_line(tmp_path: Path) -> None:
    record = deployment(7, A, load(tmp_path))
    record.job["train"]["no_such_key"] = 1
    with pytest.raises(UserError, match=r"deployment 7 cannot be read .*: train.no_such_key"):
        record.settings()


LOSS, ACCURACY = Metric("loss", "min"), Metric("accuracy", "max")


@pytest.mark.parametrize(
    ("metric", "new", "old", "passes"),
    [
        (LOSS, 1.02, 1.0, True),
        (LOSS, 1.03, 1.0, False),
        (LOSS, 0.5, 1.0, True),
        (ACCURACY, 0.79, 0.8, True),
        (ACCURACY, 0.78, 0.8, False),
        (ACCURACY, 0.9, 0.8, True),
    ],
)
def test_the_gate_lets_no_worse_version_in(
    metric: Metric, new: float, old: float, passes: bool
) -> None:
    def check() -> None:
        check_gate(metric, {metric.name: new}, {metric.name: old}, 0.02)

    if passes:
        check()
    else:
        with pytest.raises(StageError, match=r"is not deployed: .* serve.gate = 0.02 allows"):
            check()


class Silent:
    def start(self, name: str, total: float | None, unit: str, done: float = 0.0) -> None: ...
    def advance(self, amount: float) -> None: ...
    def show(self, values: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


def test_a_trial_ends_with_enough_answers_or_with_its_time() -> None:
    good = [Sample("new", False, 0.1), Sample("old", False, 0.1)] * 10
    assert sum(s.arm == "new" for s in watch(lambda: good, 25, 60, Silent(), "")) == 30
    assert watch(list, 25, 0, Silent(), "") == []


def test_a_bad_version_ends_its_trial_early() -> None:
    bad = [Sample("new", True, 0.1), *[Sample("old", False, 0.1)] * 9]
    assert len(watch(lambda: bad, 1000, 60, Silent(), "")) == 50


@pytest.mark.parametrize(
    ("serve", "range_", "first"),
    [("replicas: 3", (3, 3), 3), ("replicas: [0, 4]", (0, 4), 1), ("replicas: [2, 4]", (2, 4), 2)],
)
def test_replicas_are_a_number_or_a_range(
    tmp_path: Path, serve: str, range_: tuple[int, int], first: int
) -> None:
    job = load(tmp_path, serve)
    assert job.serve.replica_range == range_ and job.serve.first_replicas == first
    options = Release(job, "p", "t", "c", A).bind()._bound_deployment
    scaling = options._deployment_config.autoscaling_config
    if range_[0] == range_[1]:
        assert options.num_replicas == range_[0] and scaling is None
    else:
        assert (scaling.min_replicas, scaling.max_replicas) == range_
        assert scaling.initial_replicas == first
        again = Release(job, "p", "t", "c", A).bind(first=3)._bound_deployment
        assert again._deployment_config.autoscaling_config.initial_replicas == 3


def test_both_versions_are_in_one_application(tmp_path: Path) -> None:
    job = load(tmp_path)
    new, old = Release(job, "p", "t", "c", B), Release(job, "p", "t", "c", A)
    bound = new.bind(old)._bound_deployment
    assert bound.name == f"model-{B}" and bound.version == B
    assert bound.init_args[-1]._bound_deployment.name == f"model-{A}"


def test_versions_of_a_config_file_are_one_deployment(tmp_path: Path) -> None:
    """Ray Serve then replaces its replicas one by one."""
    job = load(tmp_path)
    names = {Release(job, "p", "t", "c", v).declared()._bound_deployment.name for v in (A, B)}
    assert names == {"model"}


@pytest.mark.parametrize(
    ("serve", "problem"),
    [
        ("replicas: [3, 2]", "the fewest come first"),
        ("replicas: 0", "greater than or equal to 1"),
        ("canary: 110%", "less than or equal to 1"),
        ("canary: ten", "valid number"),
        ("gate: -1", "greater than or equal to 0"),
        ("log: {share: 0%}", "greater than 0"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, serve: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load(tmp_path, serve)


def test_a_share_may_be_a_percentage(tmp_path: Path) -> None:
    serve = load(tmp_path, "canary: 25%, shadow: 0.5").serve
    assert (serve.canary, serve.shadow) == (0.25, 0.5)
    log = load(tmp_path, "log: {share: 10%}").serve.log
    assert log is not None and log.share == 0.1


def test_how_it_is_replaced_makes_no_other_version(tmp_path: Path) -> None:
    plain = fingerprint(load(tmp_path), "serve")
    assert fingerprint(load(tmp_path, "canary: 0, gate: 1, replicas: [0, 2]"), "serve") == plain
    assert fingerprint(load(tmp_path, "max_tokens: 5"), "serve") != plain


def test_the_commit_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_here() == ""
    monkeypatch.setenv("PATH", "")
    assert commit_here() == ""


def test_history_lists_what_was_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    load(tmp_path)
    file = str(tmp_path / "job.yaml")
    assert main(["history", file]) == 0
    assert "nothing was served yet" in capsys.readouterr().out
    history = written(tmp_path, (A, "deployed", "serving"), (B, "updated", "refused"))
    history.write(history.read()[1].model_copy(update={"reason": "fails 5 of 5 requests"}))
    assert main(["history", file]) == 0
    out = capsys.readouterr().out
    assert A in out and "refused" in out and "! 2: fails 5 of 5 requests" in out
    assert main(["history", file, "--json"]) == 0
    assert f'"version": "{B}"' in capsys.readouterr().out


def test_rolling_back_needs_the_cluster_that_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    load(tmp_path)
    assert main(["rollback", str(tmp_path / "job.yaml")]) == 2
    assert "set RAY_ADDRESS" in capsys.readouterr().err
