"""The deployment on Ray Serve: each replica loads the model and answers through its engine."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from starlette.types import Message

from orchestrator.infer.device import device_for
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.access import Keys
from orchestrator.serve.app import make_app
from orchestrator.serve.engines import engine_of
from orchestrator.serve.forwarding import Forwarded, respond
from orchestrator.serve.ray_metrics import RayObserver
from orchestrator.serve.request_log import RequestLog
from orchestrator.serve.split import Switch
from orchestrator.serve.trial import TrialWatch
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder


@serve.ingress()
class Endpoint:
    """One replica of one version."""

    def __init__(
        self,
        job: Job,
        prepared_uri: str,
        training_uri: str,
        version: str,
        beside: Any = None,
    ) -> None:
        """
        Args:
            version: names the version among those of the application.
            beside: the handle of another version, so that Ray Serve runs both. Not used here.
        """
        torch.set_num_threads(job.cluster.cpus_per_worker)
        prepared = PreparedData.load_required(Folder(prepared_uri))
        training = Training.load_required(Folder(training_uri))
        task = job.build_task()
        device = device_for("serve.gpus_per_replica", job.gpus_per_replica)
        trained = TrainedModel.load(task, prepared, training.checkpoint(), device)
        checkpoint = f"{training.folder.name}/{training.best_checkpoint}"
        observer = RayObserver(job.name)
        observer.show("orchestrator_model_info", 1, version=version, checkpoint=checkpoint)
        engine = engine_of(task)(job, trained, observer=observer)
        self._keys = Keys()
        switch = Switch()
        self._watch = TrialWatch(serve.get_replica_context().app_name, version, switch)
        log = None
        if job.serve.log is not None:
            run = Folder(training.folder.uri.rpartition("/")[0])
            log = RequestLog(job.serve.log, run, observer)
        self.api = make_app(
            job.name,
            engine,
            version=version,
            inputs=task.inputs,
            keys=self._keys,
            switch=switch,
            log=log,
            behind_proxy=True,
        )

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Called by Ray Serve before the first request, and when API keys change."""
        self._keys.set(config["keys"])

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the model is loaded: what answers the replica's requests."""
        return self.api

    async def forwarded(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """Answer a request that another version or the command hands over."""
        async for message in respond(self.api, request):
            yield message


@serve.deployment
class Version:
    """Makes an `Endpoint`.

    Ray Serve refuses an application with two classes that answer HTTP, though only one is given the
    application's route. It looks at the classes that are deployed, not at what they make.
    """

    def __new__(cls) -> Any:
        return object.__new__(Endpoint)
