"""A version of a model that can be deployed: a checkpoint, its data, and how it answers."""

from dataclasses import dataclass, field, replace
from typing import Any

from ray.serve import Application

from orchestrator import __version__
from orchestrator.job.api_keys import read_keys
from orchestrator.job.fingerprint import fingerprint
from orchestrator.job.job import Job
from orchestrator.serve.endpoint import Version
from orchestrator.serve.history import Deployment
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder

PREFIX = "model-"  # of the names of deployments
DECLARED = "model"
UPSCALE_SECONDS = 5.0
DOWNSCALE_SECONDS = 60.0
PLACE = ("replicas", "host", "port", "route_prefix", "keys", "open")
CLOSING_SECONDS = 10.0  # beside the longest request: for a replica that ends


@dataclass(frozen=True)
class Release:
    """A version. `keys` are the hashes of the API keys; they are those of now in every version."""

    job: Job
    prepared: str
    training: str
    checkpoint: str
    version: str
    keys: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, job: Job, prepared: PreparedData, training: Training) -> "Release":
        """The release of a run's best checkpoint.

        Raises:
            StageError: if the checkpoint is gone.
            UserError: if the file of API keys cannot be read.
        """
        machine = f"{job.cluster.cpus_per_worker} CPUs, {job.gpus_per_replica} GPUs"
        digest = training.checkpoint().digest
        content = f"{__version__} {prepared.folder.name} {digest} {machine}"
        return cls(
            job,
            prepared.folder.uri,
            training.folder.uri,
            training.best_checkpoint,
            fingerprint(job, "serve", content),
            _keys(job),
        )

    @classmethod
    def again(cls, deployed: Deployment, current: Job) -> "Release":
        """An earlier deployment, with the API keys of the current job.

        Raises:
            UserError: if this release of the package cannot read its settings.
        """
        return cls(
            deployed.settings(),
            deployed.prepared,
            deployed.training,
            deployed.checkpoint,
            deployed.version,
            _keys(current),
        )

    def placed_as(self, current: Job) -> "Release":
        """The same version with the replicas and the address of the current job."""
        serve = {key: getattr(current.serve, key) for key in PLACE}
        ours = self.job.serve.model_copy(update=serve)
        return replace(self, job=self.job.model_copy(update={"serve": ours}))

    def check(self) -> None:
        """Raises StageError if the version's data or checkpoint is gone."""
        PreparedData.load_required(Folder(self.prepared))
        Training.load_required(Folder(self.training)).checkpoint()

    @property
    def name(self) -> str:
        """The name of its deployment on Ray Serve."""
        return f"{PREFIX}{self.version}"

    def bind(self, beside: "Release | None" = None, first: int | None = None) -> Application:
        """The application of Ray Serve that answers with this version.

        Args:
            beside: another version that runs in the same application, and gets no requests.
            first: how many replicas an autoscaled deployment starts with.
        """
        # Ray Serve would take every call for a new version, and restart the replicas.
        options = {"name": self.name, "version": self.version, "_internal": True}
        return self._bind(options, None if beside is None else beside.bind(), first)

    def declared(self) -> Application:
        """The application for a config file. A deployment of another version has the same name, so
        that Ray Serve replaces its replicas one by one."""
        return self._bind({"name": DECLARED})

    def _bind(
        self,
        options: dict[str, Any],
        beside: Application | None = None,
        first: int | None = None,
    ) -> Application:
        serve = self.job.serve
        fewest, most = serve.replica_range
        # The engine's own queue is the bound: it answers 429, and says when to come again. That of
        # Ray Serve counts requests on their way, and would refuse what comes in one moment.
        limit = serve.slots + 2 * serve.max_queued_requests + 64
        options |= {"max_ongoing_requests": limit, "max_queued_requests": limit}
        if fewest == most:
            options["num_replicas"] = fewest
        else:
            options["autoscaling_config"] = {
                "min_replicas": fewest,
                "max_replicas": most,
                "initial_replicas": min(max(fewest, 1, first or 1), most),
                "target_ongoing_requests": max(serve.slots // 2, 1),
                "upscale_delay_s": UPSCALE_SECONDS,
                "downscale_delay_s": DOWNSCALE_SECONDS,
            }
        deployment: Any = Version  # the decorator made a serve.Deployment of the class
        application: Application = deployment.options(
            user_config={"keys": list(self.keys)},
            graceful_shutdown_timeout_s=serve.deadline_seconds + CLOSING_SECONDS,
            ray_actor_options={
                "num_cpus": self.job.cluster.cpus_per_worker,
                "num_gpus": self.job.gpus_per_replica,
            },
            **options,
        ).bind(
            self.job,
            self.prepared,
            self.training,
            self.version,
            beside,
        )
        return application


def _keys(job: Job) -> tuple[str, ...]:
    return () if job.serve.keys is None else tuple(read_keys(job.serve.keys))
