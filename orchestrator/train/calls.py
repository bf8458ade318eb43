"""Calls of the supervisor's actor, over a network that may fail for a while.

Ray tells a lost connection (`ActorUnavailableError`) from a lost actor (`ActorDiedError`). The
first one passes: the actor lives, and the same call may reach it a second later. Whether it has
reached it already, nobody knows. So a call that is made again may take effect twice.
"""

import logging
import threading
import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RpcError

from orchestrator.errors import first_line

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # for one answer
PATIENCE_SECONDS = 60.0  # for all tries; Ray needs as long to notice that a node is lost
AGAIN_SECONDS = 1.0  # between tries
PASSING = (ActorUnavailableError, GetTimeoutError, RpcError)


def answer(method: Any, *arguments: Any, patience: float = PATIENCE_SECONDS) -> Any:
    """The answer of an actor's method, called again while the network fails.

    Raises:
        RayError: what the method raised, or that the actor is lost; the network's error after
            `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return ray.get(method.remote(*arguments), timeout=ANSWER_SECONDS)
        except PASSING as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("no answer to a call: %s; calling again", first_line(error))
        time.sleep(AGAIN_SECONDS)


class Outbox:
    """Messages to an actor that are not waited for, and are sent again if the network lost them."""

    def __init__(self) -> None:
        self._sent: list[tuple[Any, Any, tuple[Any, ...]]] = []  # what is not known to have arrived
        self._lock = threading.Lock()

    def send(self, method: Any, *arguments: Any) -> None:
        """Call the method, and return at once."""
        with self._lock:
            self._sent.append((method.remote(*arguments), method, arguments))

    def send_again(self) -> None:
        """Send again, in their order, the messages that were lost. To be called now and then."""
        with self._lock:
            sent, self._sent = self._sent, []
            references = [reference for reference, *_ in sent]
            known, _ = ray.wait(references, num_returns=len(sent), timeout=0) if sent else ([], [])
            arrived = {reference for reference in known if not _is_lost(reference)}
            for reference, method, arguments in sent:
                if reference not in known:
                    self._sent.append((reference, method, arguments))
                elif reference not in arrived:
                    self._sent.append((method.remote(*arguments), method, arguments))

    def flush(self, seconds: float = ANSWER_SECONDS) -> None:
        """Wait until every message has arrived, or so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            self.send_again()
            if not self._sent or time.monotonic() > deadline:
                return
            ray.wait([self._sent[0][0]], timeout=AGAIN_SECONDS)


def _is_lost(reference: Any) -> bool:
    """Whether a call that has ended failed for a reason that passes."""
    try:
        ray.get(reference, timeout=0)
    except PASSING:
        return True
    except RayError as error:
        logger.warning("a message did not arrive: %s", first_line(error))
    return False
