"""Deploys the best checkpoint on Ray Serve, and asks the endpoint for a first answer."""

import logging
import socket
import time
from typing import Any, cast

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from orchestrator.errors import StageError, UserError, last_line
from orchestrator.job.job import Job
from orchestrator.progress import Progress
from orchestrator.serve.endpoint import Endpoint
from orchestrator.serve.engines import engine_of
from orchestrator.storage.artifact import PreparedData, Training

logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # importing it enabled its log


def deploy(job: Job, prepared: PreparedData, training: Training, progress: Progress) -> str:
    """Deploy under the job's name, replacing what runs there; returns the endpoint's URL.

    Raises:
        UserError: if the port or the route is taken.
        StageError: if no replica becomes healthy.
    """
    progress.start("deploying", total=None, unit="")
    options = _running_options()
    if options is None:
        _require_free_port(job)
        options = HTTPOptions(host=job.serve.host, port=job.serve.port)
    try:
        serve.start(http_options=options)
        endpoint = bind(job, prepared, training)
        serve.run(endpoint, name=job.name, route_prefix=job.serve.route_prefix)
    except (RuntimeError, RayError, RayServeException) as error:
        raise _explained(job, error) from error
    finally:
        progress.finish()
    host = "127.0.0.1" if options.host == "0.0.0.0" else options.host  # noqa: S104
    return f"http://{host}:{options.port}{job.serve.route_prefix.rstrip('/')}"


def bind(job: Job, prepared: PreparedData, training: Training) -> Application:
    """The application of Ray Serve that answers with the best checkpoint."""
    deployment: Any = Endpoint  # the decorator made a serve.Deployment of the class
    application: Application = deployment.options(
        num_replicas=job.serve.replicas,
        max_ongoing_requests=8,
        max_queued_requests=job.serve.max_queued_requests,
        ray_actor_options={"num_cpus": job.cluster.cpus_per_worker},
    ).bind(job, prepared.folder.uri, training.folder.uri)
    return application


def ask(url: str, job: Job) -> str:
    """The endpoint's answer to the job's sample prompt, asked over HTTP as a client does.

    Raises:
        StageError: if there is no answer within half a minute.
    """
    task = job.build_task()
    engine = engine_of(task)
    body = engine.sample_request(task, job.serve.sample_prompt)
    deadline = time.monotonic() + 30
    while True:
        try:
            answer = httpx.post(f"{url}/v1/{engine.path}", json=body, timeout=30)
            if answer.status_code == 200:
                return engine.sample_answer(answer.json())
            reason = f"{answer.status_code}: {answer.text[:200]}"
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
        if time.monotonic() > deadline:
            raise StageError(f"{url} does not answer: {reason}")
        time.sleep(0.2)  # the proxy learns of the route a moment after the deployment is healthy


def _running_options() -> HTTPOptions | None:
    """The address on which the cluster's Ray Serve listens; None if Ray Serve does not run.

    Once it runs, no deployment changes its address.
    """
    try:
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None
    return cast(HTTPOptions, ray.get(controller.get_http_config.remote()))


def _require_free_port(job: Job) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((job.serve.host, job.serve.port))
        except OSError as error:
            raise UserError(
                f"serve.port = {job.serve.port}: {job.serve.host}:{job.serve.port} cannot be used "
                f"({error.strerror}): set serve.port to a free one"
            ) from error


def _explained(job: Job, error: Exception) -> Exception:
    """A failed deployment's error in one line: a UserError where the user can mend it."""
    last = last_line(str(error))
    if "is being used by application" in last:
        return UserError(f"serve.route_prefix = {job.serve.route_prefix}: {last}: set another")
    application = serve.status().applications.get(job.name)
    messages = [] if application is None else [d.message for d in application.deployments.values()]
    for line in "\n".join(messages).splitlines():
        if "Error: " in line:
            last = line.strip().removeprefix("orchestrator.errors.")
    return StageError(f"the endpoint did not become healthy: {last}")
