"""The deployment on Ray Serve: each replica loads the model and answers through its engine."""

from collections.abc import Sequence

import torch
from fastapi import FastAPI
from ray import serve

from orchestrator.infer.device import device_for
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.app import make_app
from orchestrator.serve.engines import engine_of
from orchestrator.serve.ray_metrics import RayObserver
from orchestrator.serve.request_log import RequestLog
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder


@serve.deployment
@serve.ingress()
class Endpoint:
    """One replica."""

    def __init__(
        self, job: Job, prepared_uri: str, training_uri: str, keys: Sequence[str] = ()
    ) -> None:
        torch.set_num_threads(job.cluster.cpus_per_worker)
        prepared = PreparedData.load_required(Folder(prepared_uri))
        training = Training.load_required(Folder(training_uri))
        task = job.build_task()
        device = device_for("serve.gpus_per_replica", job.gpus_per_replica)
        trained = TrainedModel.load(task, prepared, training.checkpoint(), device)
        version = f"{training.folder.name}/{training.best_checkpoint}"
        observer = RayObserver(job.name)
        observer.show("orchestrator_model_info", 1, version=version)
        engine = engine_of(task)(job, trained, observer=observer)
        log = None
        if job.serve.log is not None:
            run = Folder(training.folder.uri.rpartition("/")[0])
            log = RequestLog(job.serve.log, run, observer)
        self.api = make_app(
            job.name,
            engine,
            version=version,
            inputs=task.inputs,
            keys=keys,
            log=log,
            behind_proxy=True,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the model is loaded: what answers the replica's requests."""
        return self.api
