"""A request and its answer as they went over the wire, and what they hold."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.serve.logged import LoggedRequest
from orchestrator.storage.strict_json import finite


@dataclass(frozen=True)
class Exchange:
    """Bytes of a request and of its answer. `began` is a Unix time in seconds."""

    id: str
    began: float
    path: str
    version: str
    status: int
    complete: bool
    seconds: float
    request: bytes
    answer: bytes
    is_stream: bool

    @property
    def size(self) -> int:
        return len(self.request) + len(self.answer)

    def logged(self) -> LoggedRequest:
        """The values in the bytes."""
        answer = joined(self.answer) if self.is_stream else _value(self.answer)
        return LoggedRequest(
            id=self.id,
            time=datetime.fromtimestamp(self.began, UTC),
            path=self.path,
            version=self.version,
            status=self.status,
            complete=self.complete,
            seconds=self.seconds,
            request=_value(self.request),
            answer=answer,
        )


def joined(events: bytes) -> dict[str, Any]:
    """The answer that a stream of OpenAI's chunks amounts to, without its log-probabilities."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    *whole, _ = events.split(b"\n\n")  # the last one is empty, or was cut off
    for event in whole:
        chunk = _value(event.removeprefix(b"data: "))
        if not isinstance(chunk, dict):
            continue  # [DONE]
        for choice in chunk.pop("choices", []):
            _add(choices.setdefault(choice["index"], {"index": choice["index"]}), choice)
        answer |= {key: value for key, value in chunk.items() if value is not None}
    return answer | {"choices": [choices[index] for index in sorted(choices)]}


def _add(whole: dict[str, Any], part: dict[str, Any]) -> None:
    if "delta" in part:
        message = whole.setdefault("message", {"role": "assistant", "content": ""})
        message["content"] += part["delta"].get("content") or ""
    else:
        whole["text"] = whole.get("text", "") + part["text"]
    whole["finish_reason"] = part.get("finish_reason") or whole.get("finish_reason")


def _value(content: bytes) -> Any:
    """The value of a JSON text, or what is none, as a text."""
    try:
        return finite(json.loads(content))
    except (ValueError, RecursionError):
        return content.decode(errors="replace")
