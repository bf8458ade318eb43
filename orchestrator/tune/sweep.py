"""The tune stage: a sweep over hyperparameters on Ray Tune. A trial is `fit()` with other values.

Trials of one worker run in Tune's own actors. Tune reuses them, so that another trial starts within
milliseconds. Each trial is recorded while it runs: a sweep that was killed continues the trials
that ran, and keeps the results of the others.
"""

import contextlib
import time
import unittest.mock
from collections.abc import Iterator
from typing import Any

import ray.tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.waiting import waits_shown
from orchestrator.errors import StageError, StoppedError
from orchestrator.job.job import Job
from orchestrator.job.needs import worker_resources
from orchestrator.progress import Progress
from orchestrator.storage.artifact import FINDINGS, PreparedData, Sweep
from orchestrator.storage.folder import Folder
from orchestrator.train.preload import KEPT_MEMORY
from orchestrator.tune.findings import findings, ranked
from orchestrator.tune.precision import choose_for_trials
from orchestrator.tune.recorder import Recorder
from orchestrator.tune.records import SweepRecord, Trial, earlier_trials, read_trials
from orchestrator.tune.schedule import replay, scheduler
from orchestrator.tune.search import Search
from orchestrator.tune.trial import Sweeping, run_trial, warmup_steps

ATTEMPTS = 2  # starts of a trial, where its process was lost
# Of a trial whose workers have their own resources. Tune requires it to have some.
NO_RESOURCES = {"memory": 1.0}


def tune(
    job: Job, prepared: PreparedData, folder: Folder, cluster: Cluster, progress: Progress
) -> Sweep:
    """Run the trials of `job.tune` that have not ended yet, and pick the best of all.

    Raises:
        StageError: where no trial succeeded.
        StoppedError: where a user asked the sweep to stop.
    """
    assert job.tune is not None
    metric = job.build_task().metric
    past = read_trials(folder)
    earlier = earlier_trials(folder) if job.tune.warm_start else []
    search = Search(job.tune, metric, past.values(), earlier)
    record = SweepRecord.load(folder) or _new_record(job, cluster)
    record.state, record.concurrent = "running", room_for_trials(job, cluster)
    record.save(folder)
    recorder = Recorder(record, folder, search, metric, progress)
    ended = sum(trial.state != "running" for trial in past.values())
    progress.start("tuning", total=search.expected, unit="trials", done=ended)
    state, error = "failed", "interrupted"
    try:
        if not search.exhausted and not recorder.out_of_time:
            workers = job.tune.workers
            with waits_shown(progress, worker_resources(job), lambda: workers):
                _run_trials(with_precision(job, prepared, record, folder), prepared, recorder)
        if recorder.stop_asked:
            state, error = "stopped", ""
            raise StoppedError("a user stopped the sweep: the same command continues it")
        recorder.flush()
        sweep = _result(job, record, folder, recorder.seconds, list(search.trials.values()))
        state, error = "finished", ""
        return sweep.commit()
    except KeyboardInterrupt:
        state, error = "stopped", ""
        raise
    except Exception as failure:
        error = error if state == "stopped" else str(failure)
        raise
    finally:
        recorder.close(state, error)
        progress.finish()


def with_precision(job: Job, prepared: PreparedData, record: SweepRecord, folder: Folder) -> Job:
    """The job with the precision of its trials, which is chosen at the sweep's first start."""
    assert job.tune is not None
    if job.train.precision != "auto" or "train.precision" in job.tune.space:
        return job
    if record.precision is None:
        choice = choose_for_trials(job, prepared)
        record.precision, record.notices = choice.precision, choice.notices
        record.save(folder)
    return job.override({"train.precision": record.precision})


def _new_record(job: Job, cluster: Cluster) -> SweepRecord:
    config = job.tune
    assert config is not None
    metric = job.build_task().metric
    return SweepRecord(
        name=job.name,
        task=job.task,
        metric=metric.name,
        mode=metric.mode,
        space={key: domain.model_dump(exclude_none=True) for key, domain in config.space.items()},
        search=config.searched_by,
        scheduler=config.scheduler,
        trials=config.configurations,
        repeats=config.repeats,
        steps=config.steps,
        minutes=config.minutes,
        cpus=config.workers * job.cluster.cpus_per_worker,
        gpus=config.workers * job.cluster.gpus_per_worker,
        started=time.time(),
    )


def room_for_trials(job: Job, cluster: Cluster) -> int:
    """How many trials the cluster can run at the same time."""
    assert job.tune is not None
    each = worker_resources(job)
    most = cluster.room.ever(each)  # also on nodes that an autoscaler adds, where it says which
    workers = most if most < float("inf") else cluster.room.now(each)
    return max(1, int(workers // job.tune.workers))


def _run_trials(job: Job, prepared: PreparedData, recorder: Recorder) -> None:
    assert job.tune is not None
    # Ray's own records of the trials, which a rerun does not read.
    ray_folder = recorder.folder / "ray"
    in_population = job.tune.scheduler == "pbt"
    sweeping = Sweeping(job, prepared.folder.uri, recorder.folder.uri, in_population)
    chosen = scheduler(job.tune, recorder.metric, warmup_steps(job))
    replay(chosen, recorder.search.trials.values())
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(run_trial, sweeping=sweeping), resources_of_a_trial(job)
        ),
        tune_config=ray.tune.TuneConfig(
            scheduler=chosen,
            search_alg=_Suggestions(recorder),
            num_samples=-1,
            reuse_actors=True,
            # The trials of a population take turns, so all of them must have begun.
            max_concurrent_trials=None if in_population else recorder.record.concurrent,
        ),
        run_config=ray.tune.RunConfig(
            name=f"{job.name}-{time.time_ns()}",
            **ray_folder.for_ray(),
            callbacks=[recorder],
            stop=_Requests(recorder),
            failure_config=ray.tune.FailureConfig(max_failures=ATTEMPTS - 1),
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=4),
            verbose=0,
        ),
    )
    with _kept_memory():
        try:
            tuner.fit()
        finally:
            ray_folder.delete()


@contextlib.contextmanager
def _kept_memory() -> Iterator[None]:
    """Set the environment of trials' actors. Tune has no setting for it."""
    with unittest.mock.patch.dict(class_cache.DEFAULT_ENV_VARS, KEPT_MEMORY):
        yield


def resources_of_a_trial(job: Job) -> dict[str, float]:
    if job.tune is not None and job.tune.workers > 1:
        return NO_RESOURCES  # its workers take theirs through Ray Train
    return worker_resources(job)


class _Suggestions(Searcher):
    """Hands the search's trials to Tune. The recorder tells the search how they end."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder.metric.name, recorder.metric.mode)
        self._recorder = recorder

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        search = self._recorder.search
        if search.exhausted or self._recorder.out_of_time or self._recorder.stop_asked:
            return Searcher.FINISHED
        assignment = search.next()
        if assignment is None:
            return None
        known = search.trials[assignment.number]
        self._recorder.begin(known)
        return {
            "number": assignment.number,
            "repeat": assignment.repeat,
            "overrides": assignment.overrides,
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # for Tune's own restore, which is never used

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Requests(ray.tune.Stopper):
    """Ends a trial, or the sweep, at the next validation after a user asked for it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return result.get("config", {}).get("number") in self._recorder.asked

    def stop_all(self) -> bool:
        return self._recorder.stop_asked or self._recorder.out_of_time


def _result(
    job: Job, record: SweepRecord, folder: Folder, seconds: float, trials: list[Trial]
) -> Sweep:
    assert job.tune is not None
    metric = job.build_task().metric
    order = ranked(trials, metric)
    if not order:
        reasons = [trial.reason for trial in trials if trial.reason] or ["no trial began"]
        raise StageError(f"every trial failed; the first: {reasons[0]}")
    best = order[0]
    chosen = described(best.overrides)
    sweep = Sweep(
        folder=folder,
        seconds=seconds,
        summary=f"{len(trials)} trials, best {metric.name} {best.value:.3f} at {chosen}",
        notices=record.notices,
        best=best.overrides,
        best_trial=best.numbers[0],
        trials=[trial.model_dump(exclude={"curve", "traceback"}) for trial in trials],
    )
    folder.write(FINDINGS, findings(job, trials, order).encode())
    return sweep


def described(overrides: dict[str, Any]) -> str:
    """A trial's values on one line, floats rounded. A choice may be text or anything else."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in overrides.items()
    )
