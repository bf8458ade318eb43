"""Deploys the best checkpoint on Ray Serve, and asks the endpoint for a first answer."""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import httpx
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from orchestrator.cluster.connection import raised_by_user_code
from orchestrator.cluster.nodes import head, run_on
from orchestrator.cluster.waiting import waits_shown
from orchestrator.errors import StageError, TryAgainError, UserError, last_line
from orchestrator.job.api_keys import digest_of, read_keys, unguarded
from orchestrator.job.job import Job
from orchestrator.job.needs import replica_resources
from orchestrator.progress import Progress
from orchestrator.serve import vllm
from orchestrator.serve.address import LOCALHOST, Address, find_address, why_not_free
from orchestrator.serve.endpoint import Endpoint
from orchestrator.serve.engines import engine_of
from orchestrator.storage.artifact import PreparedData, Training

logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # importing it enabled its log

ANSWER_SECONDS = 30.0


def deploy(job: Job, prepared: PreparedData, training: Training, progress: Progress) -> Address:
    """Deploy under the job's name, replacing what runs there; returns the endpoint's address.

    Raises:
        UserError: if the port or the route is taken, or Ray Serve listens for others without keys.
        StageError: if no replica becomes healthy, or no node listens.
        TryAgainError: if the cluster lost what deploys.
    """
    progress.start("deploying", total=None, unit="")
    options = _running_options()
    if options is None:
        _require_free_port(job)
        options = HTTPOptions(host=job.serve.host, port=job.serve.port)
    elif problem := unguarded(job.serve, options.host or LOCALHOST):
        raise UserError(f"Ray Serve runs already and listens on {options.host}: {problem}")
    key = f"sk-{secrets.token_urlsafe(32)}" if job.serve.keys is not None else ""
    try:
        serve.start(http_options=options)
        endpoint = bind(job, prepared, training, [digest_of(key)] if key else [])
        with waits_shown(progress, replica_resources(job), lambda: job.serve.replicas):
            if job.serve.engine == "vllm":
                vllm.run(job, training)
            else:
                serve.run(endpoint, name=job.name, route_prefix=job.serve.route_prefix)
    except (RuntimeError, RayError, RayServeException) as error:
        raise _explained(job, error) from error
    finally:
        progress.finish()
    return replace(find_address(job, options), key=key)


def bind(
    job: Job, prepared: PreparedData, training: Training, own_keys: Sequence[str] = ()
) -> Application:
    """The application of Ray Serve that answers with the best checkpoint.

    Args:
        own_keys: the hashes of further API keys, beside those of `serve.keys`.
    """
    keys = [] if job.serve.keys is None else [*read_keys(job.serve.keys), *own_keys]
    # The engine's own queue is the bound: it answers 429, and says when to come again. Ray Serve's
    # counts requests on their way to a replica: with fewer it refuses what comes in one moment.
    most = job.serve.slots + 2 * job.serve.max_queued_requests + 64
    deployment: Any = Endpoint  # the decorator made a serve.Deployment of the class
    application: Application = deployment.options(
        num_replicas=job.serve.replicas,
        max_ongoing_requests=most,
        max_queued_requests=most,
        ray_actor_options={
            "num_cpus": job.cluster.cpus_per_worker,
            "num_gpus": job.gpus_per_replica,
        },
    ).bind(job, prepared.folder.uri, training.folder.uri, keys)
    return application


def ask(address: Address, job: Job) -> str:
    """The endpoint's answer to the job's sample prompt, asked over HTTP as a client does.

    An endpoint that listens for its own machine alone is asked there.

    Raises:
        StageError: if there is no answer within half a minute.
    """
    if not address.is_local:
        return _ask(address.url, job, address.key)
    try:
        return run_on(address.node, 2 * ANSWER_SECONDS + 30, _ask, address.url, job, address.key)
    except RayError as error:
        raise raised_by_user_code(error) or StageError(
            f"{address.url} on node {address.ip} cannot be asked: {last_line(str(error))}"
        ) from error


def _ask(url: str, job: Job, key: str) -> str:
    task = job.build_task()
    engine = engine_of(task)
    body = {"model": job.name, **engine.sample_request(task, job.serve.sample_prompt)}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            answer = httpx.post(
                f"{url}/v1/{engine.path}", json=body, headers=headers, timeout=ANSWER_SECONDS
            )
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
    """Raises UserError if the port is taken on the head, which always listens."""
    host, port = job.serve.host, job.serve.port
    if (node := head()) is None:
        return
    if problem := run_on(node, ANSWER_SECONDS, why_not_free, host, port):
        raise UserError(
            f"serve.port = {port}: {host}:{port} cannot be used ({problem}): set serve.port to a "
            f"free one"
        )


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
    lost = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    kind = TryAgainError if lost else StageError
    return kind(f"the endpoint did not become healthy: {last}")
