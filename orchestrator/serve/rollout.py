"""Replaces the version that serves by another one, without an answer lost.

Both versions are deployments of one application of Ray Serve. Only the one that has the
application's route gets requests; the route moves in one step. The new version

1. passes the gate: its score on the test split is about as good as the served one's,
2. loads beside the old one, and answers a request of the command,
3. answers a share of the requests, handed over by the old one, while both are compared,
4. gets the route; the old one finishes what it has begun, and ends.

Whatever fails, or whoever stops it, the old version keeps the route, and the new one is removed.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from orchestrator.cluster.connection import here
from orchestrator.errors import StageError, last_line
from orchestrator.progress import Progress
from orchestrator.serve import verdict
from orchestrator.serve.engines import engine_of
from orchestrator.serve.forwarding import Answer, Forwarded
from orchestrator.serve.release import Release
from orchestrator.serve.samples import Sample
from orchestrator.serve.trial import NAMESPACE, Shares, TrialActor, actor_name
from orchestrator.tasks.task import Metric

PERIOD = 0.5  # seconds between two looks at a trial
STALE = 2.0  # seconds in which a proxy may not have heard that the route moved


def check_gate(
    metric: Metric, new: dict[str, float], old: dict[str, float], allowed: float
) -> None:
    """Raises StageError if the new metric is worse than the old by more than this part of it."""
    if metric.name not in new or metric.name not in old:
        return
    now, before = new[metric.name], old[metric.name]
    margin = allowed * abs(before)
    worst = before + margin if metric.mode == "min" else before - margin
    if metric.better(worst, now):
        raise StageError(
            f"the new version is not deployed: its {metric.name} on the test split is {now:.4g}, "
            f"the served one's is {before:.4g}, and serve.gate = {allowed:g} allows {worst:.4g}"
        )


def run(release: Release, beside: Release | None = None, first: int | None = None) -> None:
    """Deploy a version, and wait until it is healthy.

    Raises: what Ray Serve raises.
    """
    serve.run(
        release.bind(beside, first), name=release.job.name,
        route_prefix=release.job.serve.route_prefix,
    )  # fmt: skip


def self_test(release: Release) -> str:
    """The answer of a version to the job's sample prompt, asked inside the cluster.

    Raises:
        StageError: if it answers with an error, or not within `serve.deadline_seconds`.
    """
    job = release.job
    task = job.build_task()
    engine = engine_of(task)
    request = Forwarded(
        "POST",
        f"/v1/{engine.path}",
        [(b"content-type", b"application/json")],
        json.dumps(engine.sample_request(task, job.serve.sample_prompt)).encode(),
    )
    wrong = f"version {release.version} does not pass its test: "
    handle = serve.get_deployment_handle(release.name, job.name)
    try:
        answer = _asked(handle, request)
    except (RayError, RayServeException) as error:
        raise StageError(f"{wrong}{last_line(str(error)) or type(error).__name__}") from error
    if answer.status != 200:
        text = answer.body[:300].decode(errors="replace")
        raise StageError(f"{wrong}it answers {answer.status}: {text}")
    try:
        return engine.sample_answer(json.loads(answer.body))
    except (ValueError, LookupError, TypeError) as error:
        raise StageError(f"{wrong}its answer is no answer: {error}") from error


def _asked(handle: Any, request: Forwarded) -> Answer:
    status, body = 0, bytearray()
    for message in handle.options(method_name="forwarded", stream=True).remote(request):
        status = message.get("status", status)
        body += message.get("body", b"")
    return Answer(status, {}, bytes(body))


def replace(
    old: Release,
    new: Release,
    progress: Progress,
    *,
    try_first: bool,
    first: int | None = None,
) -> tuple[str, dict[str, float]]:
    """Move the traffic from one version to another. Returns the new one's first answer, and the
    figures of both while the new one was tried.

    Args:
        try_first: by `serve.shadow` and `serve.canary`, before it gets all requests.
        first: how many replicas an autoscaled new version starts with.

    Raises:
        StageError: if the new version is worse. Then the old one serves.
        What Ray Serve raises, likewise.
    """
    progress.start(f"loading version {new.version}", total=None, unit="")
    try:
        run(old, new)
        answer = self_test(new)
        figures = _tried(old, new, progress) if try_first else {}
        progress.start("moving the traffic", total=None, unit="")
        run(new, old, first)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            run(old)
        raise
    time.sleep(STALE)
    run(new, first=first)
    return answer, figures


def _tried(old: Release, new: Release, progress: Progress) -> dict[str, float]:
    """The figures of both versions after the shadow and the canary phase.

    Raises:
        StageError: if the new version is worse.
    """
    serving = new.job.serve
    figures: dict[str, float] = {}
    with _trial(new.job.name) as actor:
        for phase, share in (("shadow", serving.shadow), ("canary", serving.canary)):
            if share == 0:
                continue
            shares = Shares(
                old.version,
                new.name,
                canary=share if phase == "canary" else 0.0,
                shadow=share if phase == "shadow" else 0.0,
                patience=serving.deadline_seconds / 2,
            )
            ray.get(actor.set.remote(shares))
            samples = watch(
                lambda: ray.get(actor.take.remote()),
                serving.canary_requests,
                serving.canary_seconds,
                progress,
                f"{phase}: {share:.0%} of the requests",
            )
            if wrong := verdict.problem(samples):
                raise StageError(
                    f"the new version is not deployed: as {phase} of {share:.0%} it {wrong}; the "
                    f"old one serves"
                )
            figures |= {f"{phase}_{k}": v for k, v in verdict.summary(samples).items()}
            count = sum(sample.arm == "new" for sample in samples)
            if count < serving.canary_requests:
                progress.note(
                    f"the new version was judged by {count} answers as {phase}, not "
                    f"{serving.canary_requests}: no more came in {serving.canary_seconds:g} s"
                )
    return figures


def watch(
    take: Callable[[], list[Sample]],
    requests: int,
    seconds: float,
    progress: Progress,
    title: str,
) -> list[Sample]:
    """Collect samples until the new version has answered so many requests, or the time is over.

    Ends early if the verdict at one of the fixed numbers of answers is bad.
    """
    progress.start(title, total=requests, unit="answers")
    samples: list[Sample] = []
    pending = verdict.looks(requests)
    deadline = time.monotonic() + seconds
    count = 0
    while True:
        samples += take()
        before, count = count, sum(sample.arm == "new" for sample in samples)
        progress.advance(count - before)
        if pending and count >= pending[0]:
            pending = [number for number in pending if number > count]
            if verdict.problem(samples):
                return samples
        if count >= requests or time.monotonic() > deadline:
            return samples
        time.sleep(PERIOD)


@contextlib.contextmanager
def _trial(application: str) -> Iterator[Any]:
    """The actor of a trial. Its end ends the trial in all replicas."""
    options = {"name": actor_name(application), "namespace": NAMESPACE, "num_cpus": 0}
    remote: Any = ray.remote(TrialActor)
    actor = remote.options(**options, scheduling_strategy=here()).remote()
    try:
        yield actor
    finally:
        ray.kill(actor)
