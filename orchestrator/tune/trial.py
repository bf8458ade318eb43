"""One trial, in a process of Ray Tune: the same `fit()` that trains, with other values.

A trial of one worker runs in Tune's own actor, which then runs the next trial. A trial of several
workers starts a worker group, as `train` does, and waits for it.
"""

import json
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
import torch

from orchestrator.errors import StageError
from orchestrator.infer.device import device_for
from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import Checkpoints, step_name
from orchestrator.learn.directive import Directive
from orchestrator.learn.fit import fit
from orchestrator.learn.snapshot import Snapshot
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.events import EventLog
from orchestrator.storage.folder import MANIFEST, Folder
from orchestrator.train.failures import explain
from orchestrator.train.follower import Follower
from orchestrator.train.stage import train_group
from orchestrator.tune.log import logged
from orchestrator.tune.schedule import VALIDATIONS, decides_at

REPORT_SECONDS = 1.0  # between reports that the scheduler does not need: a trial waits for each
SAVE_SECONDS = 10.0  # a trial loses at most so much with its process
WORST = 1e30  # reported by a failed trial; finite, since schedulers take means of it


@dataclass(frozen=True)
class Sweeping:
    """What all trials of a sweep share."""

    job: Job
    prepared: str
    folder: str
    in_population: bool  # with population based training: trials may take over others' weights

    @property
    def steps(self) -> int:
        assert self.job.tune is not None
        return self.job.tune.steps


def run_trial(config: dict[str, Any], sweeping: Sweeping) -> None:
    """Train as the configuration says, from the newest checkpoint of this trial.

    A failure is reported to Tune, not raised: it ends the trial, not the sweep.
    """
    folder = trial_folder(Folder(sweeping.folder), config["number"])
    with logged(folder):
        _train_or_report_failure(config, folder, sweeping)


def _train_or_report_failure(config: dict[str, Any], folder: Folder, sweeping: Sweeping) -> None:
    job = sweeping.job
    try:
        job = _job_of(config, sweeping)  # raises if valid values exclude one another
        data = PreparedData.load(Folder(sweeping.prepared))
        if data is None:
            raise StageError(
                f"{sweeping.prepared}: the prepared data is gone, or on no shared storage"
            )
        if job.cluster.most_workers > 1:
            _train_on_workers(job, data, folder)
        else:
            _train_here(job, data, folder, sweeping.in_population)
    except Exception as error:
        metric = job.build_task().metric
        worst = WORST if metric.mode == "min" else -WORST
        failure = {"reason": str(explain(error, job.train)), "traceback": traceback.format_exc()}
        ray.tune.report({metric.name: worst, "step": sweeping.steps, "failure": failure})


def trial_folder(sweep: Folder, number: int) -> Folder:
    return sweep / f"trial-{number:05d}"


def _job_of(config: dict[str, Any], sweeping: Sweeping) -> Job:
    """The job with a trial's values and budget, and with another seed for a repeat."""
    job = sweeping.job
    assert job.tune is not None
    budget = {
        "train.minutes": None,
        "train.epochs": None,
        "train.steps": job.tune.steps,
        "train.eval_every": -(-job.tune.steps // VALIDATIONS),
        "train.seed": job.train.seed + config["repeat"],
        "train.profile_steps": 0,
        "cluster.workers": job.tune.workers,
        "cluster.spares": False,
    }
    warmup = {"train.warmup_steps": warmup_steps(job)}
    return job.override(warmup | config["overrides"] | budget)


def warmup_steps(job: Job) -> int:
    """Of a trial: shorter than the training's, so that a short trial reaches its learning rate."""
    assert job.tune is not None
    return min(job.train.warmup_steps, job.tune.steps // 5)


def _train_here(job: Job, data: PreparedData, folder: Folder, in_population: bool) -> None:
    """Train in this process, on its cores alone."""
    torch.set_num_threads(job.cluster.cpus_per_worker)
    world = World(device=device_for("cluster.gpus_per_worker", job.cluster.gpus_per_worker))
    task = job.build_task()
    checkpoints = Checkpoints(folder / "checkpoints", task.metric, listener=_ignore_event)
    if in_population:
        _take_over(checkpoints)
        fit(task, data, job.train, world, _SilentReporter(), _SharedCheckpoints(checkpoints))
    else:
        assert job.tune is not None
        rare = _RareCheckpoints(checkpoints, with_last=job.tune.deploy_best_trial)
        fit(task, data, job.train, world, _TuneReporter(job, task.metric.name), rare)


def _train_on_workers(job: Job, data: PreparedData, folder: Folder) -> None:
    """Train on workers that Ray Train starts for this trial."""
    follower = Follower(job, folder, EventLog(folder), _TuneProgress(job))
    try:
        train_group(job, data, folder, follower)
    finally:
        follower.close()
        (folder / "ray").delete()


def _take_over(checkpoints: Checkpoints) -> None:
    """Continue from the checkpoint that Tune gives: this trial's own, or that of a better trial."""
    given = ray.tune.get_checkpoint()
    if given is None:
        return
    with given.as_directory() as path:
        files = {file.name: file.read_bytes() for file in Path(path).iterdir()}
    manifest = files.pop(MANIFEST)
    name = step_name(json.loads(manifest)["step"])
    own = checkpoints.folder / name
    if own.exists(MANIFEST) and own.read(MANIFEST) == manifest:
        return
    checkpoints.folder.delete()  # the better trial's weights replace its own
    own.write_whole([*((n, [content]) for n, content in files.items()), (MANIFEST, [manifest])])


def _ignore_event(kind: str, **fields: Any) -> None:
    pass


@dataclass(frozen=True)
class Validated:
    """A validation of a trial."""

    at: float  # by this process's monotonic clock
    step: int
    metrics: dict[str, float]


def report(metric: str, points: list[Validated], checkpoint: Any = None) -> None:
    """Report validations to Tune, which ends the trial here if its scheduler decides so."""
    now, last = time.monotonic(), points[-1]
    reported = [{"age": now - p.at, "step": p.step, "metrics": p.metrics} for p in points]
    ray.tune.report(
        {metric: last.metrics[metric], "step": last.step, "points": reported}, checkpoint=checkpoint
    )


class _RareCheckpoints:
    """Saves a checkpoint every SAVE_SECONDS: most trials are short, and few are interrupted."""

    def __init__(self, checkpoints: Checkpoints, with_last: bool) -> None:
        self.finish, self.restore = checkpoints.finish, checkpoints.restore
        self._checkpoints = checkpoints
        self._with_last = with_last
        self._saved = time.monotonic()

    def save(self, snapshot: Snapshot) -> None:
        last = self._with_last and snapshot.step == snapshot.total_steps
        if last or time.monotonic() - self._saved >= SAVE_SECONDS:
            self._checkpoints.save(snapshot)
            self._saved = time.monotonic()


class _SharedCheckpoints:
    """Gives Tune a checkpoint with each validation, from which other trials may continue."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.finish, self.restore = checkpoints.finish, checkpoints.restore
        self._checkpoints = checkpoints
        self._metric = checkpoints.metric.name

    def save(self, snapshot: Snapshot) -> None:
        self._checkpoints.save(snapshot)
        if not snapshot.metrics:
            return
        self._checkpoints.finish()
        folder = self._checkpoints.folder / step_name(snapshot.step)
        with tempfile.TemporaryDirectory() as temporary:
            path = folder.local_path
            if path is None:
                path = Path(temporary)
                for name in folder.names():
                    (path / name).write_bytes(folder.read(name))
            shared = ray.tune.Checkpoint.from_directory(path)
            point = Validated(time.monotonic(), snapshot.step, snapshot.metrics)
            report(self._metric, [point], shared)


class _SilentReporter:
    """A reporter that ignores everything."""

    wants_samples = False

    def stepped(self, step: int, seconds: float) -> None:
        pass

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        pass

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        pass

    def directive(self) -> Directive:
        return Directive.GO_ON

    def event(self, kind: str, **fields: object) -> None:
        pass


class _TuneReporter:
    """Reports validations to Tune: at once if its scheduler decides then, else once a second."""

    def __init__(self, job: Job, metric: str) -> None:
        assert job.tune is not None
        self._config, self._warmup = job.tune, job.train.warmup_steps
        self._metric = metric
        self._points: list[Validated] = []
        self.wants_samples = False
        self._reported = time.monotonic()
        silent = _SilentReporter()
        self.stepped, self.progress = silent.stepped, silent.progress
        self.directive, self.event = silent.directive, silent.event

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        self._points.append(Validated(now, step, metrics))
        due = step >= total_steps or now - self._reported >= REPORT_SECONDS
        if due or decides_at(self._config, self._warmup, step):
            self._reported = now
            points, self._points = self._points, []
            report(self._metric, points)


class _TuneProgress:
    """Receives the progress of a worker group, and reports each validation to Tune."""

    def __init__(self, job: Job) -> None:
        self.metric = job.build_task().metric.name
        self.step = 0

    def start(self, name: str, total: float | None, unit: str, done: float = 0.0) -> None:
        self.step = int(done)

    def advance(self, amount: float) -> None:
        self.step += int(amount)

    def show(self, values: dict[str, Any]) -> None:
        named = {k.removeprefix("validation "): v for k, v in values.items() if "validation " in k}
        if self.metric in named:
            report(self.metric, [Validated(time.monotonic(), self.step, named)])

    def note(self, text: str) -> None:
        pass

    def finish(self) -> None:
        pass
