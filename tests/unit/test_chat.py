"""Chats over HTTP: which messages are taken, and that wrong ones are refused by name."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.serve.app import make_app
from orchestrator.serve.chat_protocol import ChatRequest
from tests.unit.served import CONTEXT, JOB, PLAIN, chat_processor, tiny_engine
from tests.unit.test_sequences import Room

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "a dog"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(JOB.name, tiny_engine(chat_processor()))) as found:
        yield found


def prompt_tokens(client: TestClient, *messages: Any) -> int:
    answer = client.post(PATH, json={"messages": messages, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["usage"]["prompt_tokens"]
    return count


def test_parts_of_text_are_joined(client: TestClient) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "dog"}]
    joined = prompt_tokens(client, {"role": "user", "content": "a\ndog"})
    assert prompt_tokens(client, {"role": "user", "content": parts}) == joined


def test_what_a_developer_says_is_the_systems(client: TestClient) -> None:
    counts = [
        prompt_tokens(client, {"role": role, "content": "be"}, USER)
        for role in ("developer", "system")
    ]
    assert counts[0] == counts[1]


def test_a_conversation_beyond_the_context_is_refused(client: TestClient) -> None:
    answer = client.post(PATH, json={"messages": [USER | {"content": "?" * CONTEXT}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_client_brings_no_template(client: TestClient) -> None:
    body = {"messages": [USER], "chat_template": "{{ 7 * 7 }}"}
    answer = client.post(PATH, json=body)
    assert answer.status_code == 422 and "chat_template" in answer.json()["error"]["message"]


def test_a_template_that_refuses_gives_its_reason() -> None:
    processor = chat_processor()
    processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with TestClient(make_app(JOB.name, tiny_engine(processor, Room(0)))) as client:
        answer = client.post(PATH, json={"messages": [USER]})
    assert answer.status_code == 400
    assert "roles must alternate" in answer.json()["error"]["message"]


def test_a_model_without_a_template_still_checks_the_request_first() -> None:
    with TestClient(make_app(JOB.name, tiny_engine(PLAIN, Room(0)))) as client:
        assert client.post(PATH, json={"messages": []}).status_code == 422
        answer = client.post(PATH, json={"messages": [USER]})
    assert answer.json()["error"]["code"] == "no_chat_template"


WRONG = [
    ("messages", []),
    ("messages", None),
    ("messages", "hello"),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "tool", "content": "x"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]),
    ("messages", [{"role": "user", "content": "x", "tool_calls": []}]),
    ("messages", [{"role": "user", "content": "x"}] * 1001),
    ("max_tokens", 0),
    ("max_completion_tokens", -1),
    ("top_logprobs", 21),
    ("top_logprobs", 2),  # without logprobs
    ("logprobs", 1),
    ("n", 9),
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("response_format", {"type": "json_object"}),
    ("modalities", ["audio"]),
    ("store", True),
    ("prompt", "x"),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:40])
def test_a_wrong_value_is_answered_by_the_name_of_its_field(
    client: TestClient, field: str, value: Any
) -> None:
    answer = client.post(PATH, json={"messages": [USER]} | {field: value})
    assert answer.status_code in (400, 422)
    assert field in answer.json()["error"]["message"]


def test_two_limits_must_agree(client: TestClient) -> None:
    body = {"messages": [USER], "max_tokens": 2, "max_completion_tokens": 3}
    assert client.post(PATH, json=body).status_code == 422
    assert client.post(PATH, json=body | {"max_tokens": 3}).status_code == 200


@pytest.mark.parametrize("name", ChatRequest.neutral)
def test_what_changes_nothing_is_accepted(name: str) -> None:
    plain = ChatRequest(messages=[USER])
    for value in (None, *ChatRequest.neutral[name]):
        assert ChatRequest.model_validate({"messages": [USER], name: value}) == plain
