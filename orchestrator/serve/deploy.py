"""Deploys the best checkpoint on Ray Serve, in place of what is served, or an earlier one again."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from orchestrator.cluster.connection import raised_by_user_code
from orchestrator.cluster.nodes import head, run_on
from orchestrator.cluster.waiting import waits_shown
from orchestrator.errors import OrchestratorError, StageError, TryAgainError, UserError, last_line
from orchestrator.job.api_keys import unguarded
from orchestrator.job.job import Job
from orchestrator.job.needs import replica_resources
from orchestrator.progress import Progress
from orchestrator.serve import rollout, vllm
from orchestrator.serve.address import LOCALHOST, Address, find_address, why_not_free
from orchestrator.serve.engines import engine_of
from orchestrator.serve.history import Deployment, History, commit_here, now
from orchestrator.serve.release import PREFIX, Release
from orchestrator.storage.artifact import Evaluation, PreparedData, Training

logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # importing it enabled its log

ANSWER_SECONDS = 30.0
T = TypeVar("T")


@dataclass(frozen=True)
class Deployed:
    """A deployed model: where it answers, and its first answer."""

    address: Address
    version: str
    answer: str
    what: str  # happened, in a few words


def deploy(
    job: Job,
    prepared: PreparedData,
    training: Training,
    evaluation: Evaluation | None,
    history: History,
    progress: Progress,
) -> Deployed:
    """Deploy under the job's name. What runs there is replaced as `rollout.py` says.

    Args:
        evaluation: its metrics, for the gate.

    Raises:
        UserError: if the port or the route is taken, or Ray Serve listens for others without keys,
            or what runs under this name is nothing of this run.
        StageError: if no replica becomes healthy, or the new version is worse than the served one,
            or no node listens.
        TryAgainError: if the cluster lost what deploys.
    """
    if job.serve.engine == "vllm":
        return _with_vllm(job, training, progress)
    release = Release.of(job, prepared, training)
    metrics = {} if evaluation is None else evaluation.metrics
    options = _start(job, progress)
    current = _current(job)
    if current is None:
        record = _record(release, history, metrics, "deployed")
        with _recorded(record, history), _explaining(job, progress):
            try:
                rollout.run(release)
                record.figures, answer = {}, rollout.self_test(release)
            except BaseException as error:
                raised = _explained(job, error) if isinstance(error, Exception) else error
                with contextlib.suppress(Exception):
                    serve.delete(job.name)
                raise raised from error
        return _reached(release, options, answer, "deployed")
    if current == release.name:
        with _explaining(job, progress):
            rollout.run(release)  # with the replicas and keys of now
            answer = rollout.self_test(release)
        deployed = history.of(release.version)
        if deployed is not None and deployed.outcome == "trying":  # the command was killed then
            history.write(deployed.model_copy(update={"outcome": "serving", "ended": now()}))
        return _reached(release, options, answer, "already served")
    old, served = _old(current, job, history)
    record = _record(release, history, metrics, "updated")
    with _recorded(record, history), _explaining(job, progress):
        if old.prepared != release.prepared:
            progress.note("the test split is not the one that the served version was scored on")
        metric = job.build_task().metric
        rollout.check_gate(metric, metrics, served.metrics, job.serve.gate)
        is_new = (old.training, old.checkpoint) != (release.training, release.checkpoint)
        answer, figures = rollout.replace(
            old, release, progress, try_first=is_new, first=_running(job, old)
        )
        record.figures = figures
    return _reached(release, options, answer, f"in place of {old.version}")


def _with_vllm(job: Job, training: Training, progress: Progress) -> Deployed:
    """Ray Serve replaces its replicas one by one: there is no gate, no trial and no history."""
    options = _start(job, progress)
    with _explaining(job, progress):
        vllm.run(job, training)
    address = find_address(job, options)
    answer = _on_its_node(address, _ask_vllm, address.url, job)
    return Deployed(address, "", answer, "by vLLM, without a gate, a trial and a history")


def _ask_vllm(url: str, job: Job) -> str:
    task = job.build_task()
    engine = engine_of(task)
    body = {"model": job.name, **engine.sample_request(task, job.serve.sample_prompt)}
    answer = _answered(lambda: httpx.post(f"{url}/v1/{engine.path}", json=body, timeout=60), url)
    return engine.sample_answer(answer.json())


def rollback(job: Job, history: History, progress: Progress) -> Deployed:
    """Serve the version that served before the one that does.

    Raises:
        UserError: if nothing of this run is served, or nothing was before.
        StageError: if the earlier version does not become healthy; then nothing has changed.
    """
    current = None if _running_options() is None else _current(job)
    if current is None:
        raise UserError(
            f"{job.name} is not served on this cluster, which RAY_ADDRESS names: `orchestrator "
            f"serve` deploys it"
        )
    old, _ = _old(current, job, history)
    before = history.before(old.version)
    if before is None:
        raise UserError(f"no version was served before {old.version}: `orchestrator history` lists")
    release = Release.again(before, job).placed_as(job)
    release.check()
    options = _start(job, progress)
    record = _record(release, history, before.metrics, "rolled back", before)
    with _recorded(record, history), _explaining(job, progress):
        answer, _ = rollout.replace(
            old, release, progress, try_first=False, first=_running(job, old)
        )
    return _reached(release, options, answer, f"in place of {old.version}")


def _start(job: Job, progress: Progress) -> HTTPOptions:
    """Have Ray Serve listen. Returns its address."""
    progress.start("deploying", total=None, unit="")
    options = _running_options()
    if options is None:
        _require_free_port(job)
        options = HTTPOptions(host=job.serve.host, port=job.serve.port)
    elif problem := unguarded(job.serve, options.host or LOCALHOST):
        raise UserError(f"Ray Serve runs already and listens on {options.host}: {problem}")
    with _explaining(job, progress):
        serve.start(http_options=options)
    return options


def _current(job: Job) -> str | None:
    """The name of the deployment that has the application's route, if it can answer."""
    application = serve.status().applications.get(job.name)
    if application is None:
        return None
    name = serve.get_app_handle(job.name).deployment_name
    if not name.startswith(PREFIX):
        raise UserError(f"an application named {job.name} runs on this cluster: set another name")
    state = application.deployments.get(name)
    return name if state is not None and state.status in ("HEALTHY", "UPDATING") else None


def _old(current: str, job: Job, history: History) -> tuple[Release, Deployment]:
    served = history.of(current.removeprefix(PREFIX))
    if served is None:
        raise UserError(
            f"{job.name} is served as {current}, of which {history.folder} knows nothing: another "
            f"storage's run has this name: set another name, or end that endpoint"
        )
    return Release.again(served, job), served


def _running(job: Job, release: Release) -> int:
    """How many replicas of a version run."""
    deployment = serve.status().applications[job.name].deployments.get(release.name)
    states = {} if deployment is None else deployment.replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def _record(
    release: Release,
    history: History,
    metrics: dict[str, float],
    action: Any,
    before: Deployment | None = None,
) -> Deployment:
    """Write down what is about to be deployed."""
    deployments = history.read()
    record = Deployment(
        number=max((each.number for each in deployments), default=0) + 1,
        version=release.version,
        action=action,
        outcome="trying",
        started=now(),
        prepared=release.prepared,
        training=release.training,
        checkpoint=release.checkpoint,
        metric=release.job.build_task().metric.name,
        metrics=metrics,
        source=str(release.job.data.source),
        commit=commit_here() if before is None else before.commit,
        job=release.job.model_dump(mode="json"),
    )
    history.write(record)
    return record


@contextlib.contextmanager
def _recorded(record: Deployment, history: History) -> Iterator[None]:
    """Write down how the block ended."""
    try:
        yield
    except BaseException as error:
        reason = last_line(str(error)) or type(error).__name__
        update = {"outcome": "refused", "reason": reason, "ended": now()}
        with contextlib.suppress(Exception):
            history.write(record.model_copy(update=update))
        raise
    history.write(record.model_copy(update={"outcome": "serving", "ended": now()}))


def _reached(release: Release, options: HTTPOptions, answer: str, what: str) -> Deployed:
    """Raises StageError if nothing answers at the endpoint's address within half a minute."""
    address = find_address(release.job, options)
    _on_its_node(address, _require_health, address.url)
    return Deployed(address, release.version, answer, what)


def _on_its_node(address: Address, ask: Callable[..., T], *arguments: Any) -> T:
    """What `ask` returns, where the endpoint can be asked: it may listen for its own machine alone.

    Raises:
        StageError: if there is no answer within half a minute.
    """
    if not address.is_local:
        return ask(*arguments)
    try:
        return run_on(address.node, 2 * ANSWER_SECONDS + 30, ask, *arguments)
    except RayError as error:
        raise raised_by_user_code(error) or StageError(
            f"{address.url} on node {address.ip} cannot be asked: {last_line(str(error))}"
        ) from error


def _require_health(url: str) -> None:
    _answered(lambda: httpx.get(f"{url}/healthz", timeout=ANSWER_SECONDS), url)


def _answered(ask: Callable[[], httpx.Response], url: str) -> httpx.Response:
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            answer = ask()
            if answer.status_code == 200:
                return answer
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


@contextlib.contextmanager
def _explaining(job: Job, progress: Progress) -> Iterator[None]:
    """Say what the block waits for, and raise the errors of Ray in one line."""
    try:
        with waits_shown(progress, replica_resources(job), lambda: _lacking(job)):
            yield
    except (RuntimeError, RayError, RayServeException) as error:
        raise _explained(job, error) from error
    finally:
        progress.finish()


def _lacking(job: Job) -> int:
    """How many replicas of the application have not started."""
    application = serve.status().applications.get(job.name)
    deployments = {} if application is None else application.deployments
    states = [pair for d in deployments.values() for pair in d.replica_states.items()]
    return sum(count for state, count in states if state == "STARTING")


def _explained(job: Job, error: Exception) -> Exception:
    """A failed deployment's error in one line: a UserError where the user can mend it."""
    if isinstance(error, OrchestratorError):
        return error
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
