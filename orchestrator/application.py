"""The endpoint of a finished run, for config files of Ray Serve, such as a RayService of KubeRay:

    import_path: orchestrator.application:application
    args: {job: jobs/language_modelling.yaml, overrides: [storage=s3://bucket/runs]}

`orchestrator run` needs no such file: it deploys what it has trained by itself.
"""

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from orchestrator.errors import UserError
from orchestrator.job.api_keys import unguarded
from orchestrator.job.file import load_job
from orchestrator.run import Run
from orchestrator.serve.release import Release

EVERYWHERE = "0.0.0.0"  # noqa: S104  where KubeRay lets the endpoint listen


class Arguments(BaseModel):
    """The `args` of the application: those that `orchestrator run` got."""

    model_config = ConfigDict(extra="forbid")

    job: str = Field(description="path of the job file on the cluster's machines")
    overrides: list[str] = Field(default=[], description="key=value, as on the command line")


def application(args: Arguments) -> Application:
    """The application that answers with the best checkpoint of the job's run.

    Raises:
        UserError: if the job file is wrong, or its run is not finished, or if neither serve.keys
            nor serve.open is set: where a config file deploys, others reach the endpoint.
    """
    job = load_job(args.job, args.overrides)
    if problem := unguarded(job.serve, EVERYWHERE):
        raise UserError(f"{args.job}: Ray Serve listens for other machines: {problem}")
    if job.serve.engine == "vllm":
        raise UserError(
            f"{args.job}: serve.engine = vllm: a config file names Ray Serve's own application for "
            f"it: import_path: ray.serve.llm:build_openai_app"
        )
    run = Run(job)
    chosen = run.chosen_job()
    finished = None if chosen is None else run.finished(chosen)
    if chosen is None or finished is None:
        raise UserError(
            f"{run.folder}: holds no finished training of this job: run it first with the same "
            f"overrides: {' '.join(['orchestrator train', args.job, *args.overrides])}"
        )
    prepared, training, _ = finished
    return Release.of(chosen, prepared, training).declared()
