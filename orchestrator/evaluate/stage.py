"""Scores the best checkpoint on the test split, with Ray Data and a pool of models, and reports."""

import itertools
import logging
import math
import time
import warnings
from collections.abc import Iterable

import numpy as np
import ray
import ray.data
import torch
from ray.exceptions import RayActorError, RayError

from orchestrator.cluster.connection import raised_by_user_code
from orchestrator.cluster.waiting import waits_shown
from orchestrator.data.arrays import Arrays, join
from orchestrator.data.shards import ShardReader
from orchestrator.errors import StageError
from orchestrator.evaluate.report import write_report
from orchestrator.infer.device import device_for
from orchestrator.infer.trained_model import TrainedModel, load_processor
from orchestrator.job.job import Job
from orchestrator.job.needs import worker_resources
from orchestrator.progress import Progress
from orchestrator.storage.artifact import Evaluation, PreparedData, Split, Training
from orchestrator.storage.folder import Folder

logger = logging.getLogger(__name__)

BATCH_ROWS = 16  # samples in a forward pass
TASKS_PER_WORKER = 16  # Ray Data's tasks: enough of them for the progress to move
MAX_TASK_ROWS = 4096
BASELINE_ROWS = 100_000  # training samples for the baselines: the first of the shards


def evaluate(
    job: Job,
    prepared: PreparedData,
    training: Training,
    folder: Folder,
    progress: Progress,
    sweep_report: str = "",
) -> Evaluation:
    """Score the test split and write report.json, report.md and the learning curve.

    Args:
        sweep_report: what a sweep before the training has found, in Markdown.

    Raises:
        StageError: if a metric is not a finite number.
        OrchestratorError: of the task, as it raised it.
    """
    started = time.monotonic()
    task = job.build_task()
    # The baselines are computed while the models predict, on a free core if there is one.
    baselines_ref = _baselines.remote(job, prepared.folder.uri)
    try:
        with waits_shown(progress, worker_resources(job), lambda: job.cluster.fewest_workers):
            predictions = _predict(job, prepared, training, progress)
        scores = task.score(predictions)
        _check_finite(scores, training)
        baselines: dict[str, dict[str, float]] = ray.get(baselines_ref)
    except RayError as error:
        raise raised_by_user_code(error) or error from error
    finally:
        progress.finish()
    evaluation = Evaluation(
        folder=folder,
        seconds=time.monotonic() - started,
        summary=f"test {task.metric.name} {scores[task.metric.name]:.3f}",
        metrics=scores,
        baselines=baselines,
        counted=task.explain(predictions),
    )
    write_report(job, prepared, training, evaluation, sweep_report)
    return evaluation.commit()


def _check_finite(scores: dict[str, float], training: Training) -> None:
    for name, value in scores.items():
        if not math.isfinite(value):
            raise StageError(
                f"test {name} is {value}: the predictions of "
                f"{training.folder}/{training.best_checkpoint} are not finite numbers; look at the "
                f"test rows, or lower train.lr"
            )


def _predict(job: Job, prepared: PreparedData, training: Training, progress: Progress) -> Arrays:
    """The predictions of all test rows. Starts again if a model's process is lost.

    Raises:
        RayActorError: if more than `cluster.max_failures` processes are lost.
    """
    for failures in itertools.count(1):
        progress.start("evaluating", total=prepared.rows("test"), unit="samples")
        parts = []
        try:
            for batch in _predictions(job, prepared, training):
                parts.append(batch)
                progress.advance(len(next(iter(batch.values()))))
            return join(parts)
        except RayActorError:
            if failures > job.cluster.max_failures:
                raise
            logger.warning("a process of the evaluation was lost; starting again")
    raise AssertionError("unreachable")


def _predictions(job: Job, prepared: PreparedData, training: Training) -> Iterable[Arrays]:
    rows = prepared.rows("test")
    tasks = max(TASKS_PER_WORKER * job.cluster.fewest_workers, rows // MAX_TASK_ROWS)
    numbers = ray.data.from_items(
        [{"row": row} for row in range(rows)], override_num_blocks=min(tasks, rows)
    )
    with warnings.catch_warnings():
        # Ray 2.60 deprecates `ray_remote_args_fn` without a replacement.
        warnings.simplefilter("ignore")
        predicted = numbers.materialize().map_batches(
            _Predictor,
            fn_constructor_args=(job, prepared.folder.uri, training.folder.uri),
            batch_size=BATCH_ROWS,
            num_cpus=job.cluster.cpus_per_worker,
            num_gpus=job.cluster.gpus_per_worker or None,
            compute=ray.data.ActorPoolStrategy(size=job.cluster.fewest_workers),
            # With restarts Ray prints an error at every start; `_predict` starts again instead.
            ray_remote_args_fn=lambda: {"max_restarts": 0, "max_task_retries": 0},
        )
    batches: Iterable[Arrays] = predicted.iter_batches(batch_size=None)
    return batches


class _Predictor:
    """One model of the pool, in an actor of Ray Data's: predicts for test rows by number."""

    def __init__(self, job: Job, prepared_uri: str, training_uri: str) -> None:
        torch.set_num_threads(job.cluster.cpus_per_worker)
        prepared = PreparedData.load_required(Folder(prepared_uri))
        training = Training.load_required(Folder(training_uri))
        self.reader = ShardReader(prepared, "test")
        device = device_for("cluster.gpus_per_worker", job.cluster.gpus_per_worker)
        self.trained = TrainedModel.load(
            job.build_task(), prepared, training.checkpoint(), device, training.precision
        )

    def __call__(self, batch: Arrays) -> Arrays:
        return self.trained.predict(self.reader.read(batch["row"].astype(np.int64)))


@ray.remote(num_cpus=0)
def _baselines(job: Job, prepared_uri: str) -> dict[str, dict[str, float]]:
    prepared = PreparedData.load_required(Folder(prepared_uri))
    task = job.build_task()

    def head(split: Split, limit: int) -> Arrays:
        reader = ShardReader(prepared, split)
        return reader.read(np.arange(min(limit, reader.num_rows)))

    test = head("test", prepared.rows("test"))
    return task.baselines(head("train", BASELINE_ROWS), test, load_processor(task, prepared))
