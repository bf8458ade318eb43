"""A trial of a new version, on Ray: an actor of the command says which share of the requests the
new version answers, and collects what the old version's replicas saw.

The actor ends with the command, whatever ends it. Then the replicas answer everything themselves.
"""

import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from starlette.types import Message

from orchestrator.serve.forwarding import Forwarded
from orchestrator.serve.samples import Sample
from orchestrator.serve.split import Switch, Trial

NAMESPACE = "orchestrator"
PERIOD = 0.5  # seconds between two looks of a replica
PATIENCE = 5.0


@dataclass(frozen=True)
class Shares:
    """What the replicas of version `old` are to hand over to the deployment `new`."""

    old: str
    new: str
    canary: float
    shadow: float
    patience: float


def actor_name(application: str) -> str:
    return f"trial:{application}"


class TrialActor:
    """The actor: between the command and the replicas."""

    def __init__(self) -> None:
        self._shares: Shares | None = None
        self._samples: list[Sample] = []

    def set(self, shares: Shares | None) -> None:
        self._shares = shares

    def exchange(self, version: str, samples: list[Sample]) -> Shares | None:
        """What a replica of this version is to do; takes what it saw."""
        self._samples += samples
        return self._shares if self._shares is not None and self._shares.old == version else None

    def take(self) -> list[Sample]:
        samples, self._samples = self._samples, []
        return samples


class TrialWatch:
    """A replica's thread that asks for trials of its application, and sets the replica's switch."""

    def __init__(self, application: str, version: str, switch: Switch) -> None:
        self._application, self._version, self._switch = application, version, switch
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="trials", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(2 * PERIOD):
            try:
                actor = ray.get_actor(actor_name(self._application), NAMESPACE)
                self._follow(actor)
            except (ValueError, RayError):  # there is no trial, or its command is gone
                self._switch.trial = None

    def _follow(self, actor: Any) -> None:
        handle: Any = None
        shares: Shares | None = None
        while not self._ended.wait(PERIOD):
            samples = self._switch.taken()
            seen = ray.get(actor.exchange.remote(self._version, samples), timeout=PATIENCE)
            if seen == shares:
                continue
            shares = seen
            if shares is None:
                self._switch.trial = None
                continue
            handle = serve.get_deployment_handle(shares.new, self._application)
            self._switch.trial = Trial(_ask(handle), shares.canary, shares.shadow, shares.patience)


def _ask(handle: Any) -> Any:
    forward = handle.options(method_name="forwarded", stream=True)

    async def ask(request: Forwarded) -> AsyncGenerator[Message, None]:
        answer = forward.remote(request)
        try:
            async for message in answer:
                yield message
        except GeneratorExit:
            answer.cancel()
            raise

    return ask
