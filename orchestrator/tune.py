"""Sweeping hyperparameters on Ray Tune: a trial is `fit()` with another configuration.

Trials of one worker run inside Tune's own actors, which are reused, so that a further trial costs
milliseconds rather than the start of processes. The configurations follow from the seed, and each
finished trial is written down: a sweep that was killed goes on with those that are left.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
import torch
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from orchestrator.artifact import PreparedData, Sweep
from orchestrator.cluster import Cluster
from orchestrator.errors import OrchestratorError, StageError
from orchestrator.fit import fit
from orchestrator.folder import Folder
from orchestrator.job import Domain, Job, TuneConfig
from orchestrator.progress import Progress
from orchestrator.pulse import Directive
from orchestrator.world import World

REPORTS = 4  # validations of a trial that is not stopped: what the scheduler decides by

WORST = 1e30  # what a failed trial reports: finite, since the scheduler takes means of it


def tune(
    job: Job, prepared: PreparedData, folder: Folder, cluster: Cluster, progress: Progress
) -> Sweep:
    """Run the trials of `job.tune` that are not finished yet; the best of all wins.

    Raises:
        StageError: where not one trial succeeded.
    """
    assert job.tune is not None
    started = time.monotonic()
    metric = job.build_task().metric
    done = _finished_trials(folder)
    left = [i for i in range(job.tune.trials) if i not in done]
    progress.start("tuning", total=job.tune.trials, unit="trials")
    progress.advance(len(done))
    recorder = _Recorder(job, folder, done, progress)
    if left:
        _run_trials(job, prepared, left, recorder, cluster)
    progress.finish()
    trials = [done[number] for number in sorted(done)]
    ranked = [trial for trial in trials if trial["state"] != "failed"]
    if not ranked:
        raise StageError(f"every trial failed; the first: {trials[0]['error']}")
    ranked.sort(key=lambda trial: trial[metric.name], reverse=metric.mode == "max")
    best = ranked[0]
    chosen = described(best["overrides"])
    return Sweep(
        folder=folder,
        seconds=time.monotonic() - started,
        summary=f"{len(trials)} trials, best {metric.name} {best[metric.name]:.3f} at {chosen}",
        best=best["overrides"],
        trials=trials,
    ).commit()


def described(overrides: dict[str, Any]) -> str:
    """A trial's values on one line, floats short; a choice may be of text or anything else."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in overrides.items()
    )


def sample_trial(config: TuneConfig, number: int) -> dict[str, Any]:
    """The overrides of a trial: a function of the sweep's seed and the trial's number alone."""
    random = np.random.default_rng((config.seed, number))
    return {key: _draw(domain, random) for key, domain in sorted(config.space.items())}


def _draw(domain: Domain, random: np.random.Generator) -> Any:
    if domain.choice is not None:
        return domain.choice[int(random.integers(len(domain.choice)))]
    if domain.randint is not None:
        return int(random.integers(*domain.randint))
    if domain.loguniform is not None:
        low, high = np.log(domain.loguniform)
        return float(np.exp(random.uniform(low, high)))
    assert domain.uniform is not None
    return float(random.uniform(*domain.uniform))


def _run_trials(
    job: Job, prepared: PreparedData, numbers: list[int], recorder: "_Recorder", cluster: Cluster
) -> None:
    assert job.tune is not None
    metric = job.build_task().metric
    resources = {"CPU": float(job.cluster.cpus_per_worker)}
    if job.cluster.gpus_per_worker:
        resources["GPU"] = job.cluster.gpus_per_worker
    # Ray's own records of the trials are not what a rerun reads.
    ray_folder = recorder.folder / "ray"
    trainable = ray.tune.with_parameters(_trial, job=job, prepared=prepared.folder.uri)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        param_space={"number": ray.tune.grid_search(numbers)},
        tune_config=ray.tune.TuneConfig(
            metric=metric.name,
            mode=metric.mode,
            scheduler=_scheduler(job.tune),
            reuse_actors=True,
            max_concurrent_trials=max(1, int(cluster.cpus // job.cluster.cpus_per_worker)),
        ),
        run_config=ray.tune.RunConfig(
            name=f"{job.name}-{time.time_ns()}",
            **ray_folder.for_ray(),
            callbacks=[recorder],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        ray_folder.delete()


def _scheduler(config: TuneConfig) -> TrialScheduler:
    if config.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        max_t=config.steps,
        grace_period=max(1, -(-config.steps // 4)),
        reduction_factor=2,
    )


def _trial(config: dict[str, Any], job: Job, prepared: str) -> None:
    """One trial, in this process and on its cores alone."""
    assert job.tune is not None
    torch.set_num_threads(job.cluster.cpus_per_worker)
    data = PreparedData.load(Folder(prepared))
    if data is None:
        raise StageError(f"{prepared}: the prepared data is gone, or on no shared storage")
    budget = {
        "train.minutes": None,
        "train.steps": job.tune.steps,
        "train.eval_every": max(1, job.tune.steps // REPORTS),
    }
    trial_job = job.override(sample_trial(job.tune, config["number"]) | budget)
    world = World(device=torch.device("cuda" if job.cluster.gpus_per_worker else "cpu"))
    task = trial_job.build_task()
    try:
        fit(task, data, trial_job.train, world, _TuneReporter())
    except OrchestratorError as error:  # a diverged trial, say: a row of the sweep, not its end
        worst = WORST if task.metric.mode == "min" else -WORST
        ray.tune.report({task.metric.name: worst, "step": job.tune.steps, "error": str(error)})


class _TuneReporter:
    """Tells Tune of each validation; Tune ends the trial here where its scheduler says so."""

    def stepped(self, step: int, seconds: float) -> None:
        pass

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        pass

    def directive(self) -> Directive:
        return Directive.GO_ON

    def event(self, kind: str, **fields: object) -> None:
        pass

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        ray.tune.report({**metrics, "step": step})


class _Recorder(ray.tune.Callback):
    """Writes each trial down when it ends, and shows the best so far."""

    def __init__(
        self, job: Job, folder: Folder, done: dict[int, dict[str, Any]], progress: Progress
    ) -> None:
        self.job = job
        self.folder = folder
        self.done = done
        self.progress = progress
        self.curves: dict[int, list[dict[str, float]]] = {}
        self.errors: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore of its own, which is never done

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        number = trial.config["number"]
        if "error" in result:
            self.errors[number] = result["error"]
            return
        metric = self.job.build_task().metric
        curve = self.curves.setdefault(number, [])
        curve.append({"step": result["step"], metric.name: result[metric.name]})
        best = min if metric.mode == "min" else max
        seen = [point[metric.name] for curve in self.curves.values() for point in curve]
        self.progress.show({f"best {metric.name}": best(seen)})

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._record(trial, self.errors.get(trial.config["number"]))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self._record(trial, error=(text.strip().splitlines() or ["its process was lost"])[-1])

    def _record(self, trial: Trial, error: str | None) -> None:
        assert self.job.tune is not None
        number = trial.config["number"]
        curve = self.curves.get(number, [])
        last = curve[-1] if curve else {"step": 0}
        stopped = last["step"] < self.job.tune.steps
        record = {
            "number": number,
            "state": "failed" if error else "stopped early" if stopped else "finished",
            "overrides": sample_trial(self.job.tune, number),
            **last,
            "curve": curve,
            "error": error,
        }
        self.done[number] = record
        self.folder.write(f"trial-{number:05d}.json", json.dumps(record).encode())
        self.progress.advance(1)


def _finished_trials(folder: Folder) -> dict[int, dict[str, Any]]:
    names = [name for name in folder.names() if name.startswith("trial-")]
    records = [json.loads(folder.read(name)) for name in names]
    return {record["number"]: record for record in records}
