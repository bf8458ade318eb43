"""What clients that send token ids ask for first: /tokenize, /detokenize, /tokenizer_info."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.processors.chat_template import ChatTemplate
from orchestrator.serve.app import make_app
from tests.unit.served import CONTEXT, JOB, PLAIN, chat_processor, tiny_engine
from tests.unit.test_sequences import Room

CHAT = chat_processor()


@pytest.fixture(scope="module", params=["plain", "chat"])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    processor = PLAIN if request.param == "plain" else CHAT
    with TestClient(make_app(JOB.name, tiny_engine(processor, Room(0)))) as found:
        yield found


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("text", ["the dog", " a  b\n", "é中🙂", "x<|endoftext|>y", ""])
def test_a_text_comes_back_from_its_tokens(client: TestClient, text: str) -> None:
    found = post(client, "/tokenize", prompt=text, add_special_tokens=False)
    assert found["tokens"] == PLAIN.encode(text)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), CONTEXT)
    assert post(client, "/detokenize", tokens=found["tokens"])["prompt"] == text


def test_by_default_the_tokens_are_those_of_a_prompt(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    found = post(client, "/tokenize", prompt="a", return_token_strs=True)
    assert found["token_strs"] == [info["eos_token"], "a"]


def test_the_names_in_the_information_have_ids(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    for kind in ("eos_token", "pad_token"):
        tokens = post(client, "/tokenize", prompt=info[kind], add_special_tokens=False)["tokens"]
        assert len(tokens) == 1
        assert post(client, "/detokenize", tokens=tokens)["prompt"] == info[kind]


def test_a_conversation_has_the_tokens_of_its_template() -> None:
    messages = [{"role": "user", "content": "a dog"}]
    with TestClient(make_app(JOB.name, tiny_engine(CHAT, Room(0)))) as client:
        assert post(client, "/tokenize", messages=messages)["tokens"] == ChatTemplate(CHAT).encode(
            messages
        )
        assert client.get("/tokenizer_info").json()["chat_template"] == CHAT.chat_template
    with TestClient(make_app(JOB.name, tiny_engine(PLAIN, Room(0)))) as client:
        answer = client.post("/tokenize", json={"messages": messages})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a", "x": 1}),
        ("/tokenize", {"prompt": 3}),
        ("/tokenize", {"messages": []}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**30]}),
        ("/detokenize", {"tokens": [9999]}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": "a"}),
        ("/tokenize", {"prompt": "a", "model": "gpt-9"}),
    ],
)
def test_a_wrong_request_is_refused(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(path, json=body)
    assert 400 <= answer.status_code < 500 and answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b'{"prompt": "\\ud800"}', b'{"messages": [{"role": "user", "content": "\\ud800"}]}'],
)
def test_half_a_character_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/tokenize", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["error"]["message"]
