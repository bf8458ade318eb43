"""OpenAI's own client, unchanged, on a real server."""

import hashlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from orchestrator.processors.chat_template import ChatTemplate
from orchestrator.processors.text import TextProcessor
from orchestrator.serve.app import make_app
from orchestrator.serve.text_engine import TextEngine
from tests.unit.served import PLAIN, chat_processor, listening, served, tiny_engine
from tests.unit.test_sequences import Room

MESSAGES: Any = [{"role": "system", "content": "be"}, {"role": "user", "content": "a dog"}]


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    return chat_processor()


@pytest.fixture(scope="module")
def engine(processor: TextProcessor) -> TextEngine:
    return tiny_engine(processor)


@pytest.fixture(scope="module")
def client(engine: TextEngine) -> Iterator[openai.OpenAI]:
    with served(engine) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as found:
        yield found


def test_the_model_is_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_completions(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "prompt": "the dog", "max_tokens": 8, "seed": 3}
    answer = client.completions.create(**fields, n=2, logprobs=2, echo=True, user="me")
    assert answer.object == "text_completion" and len(answer.choices) == 2
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    for choice in answer.choices:
        assert choice.text.startswith("the dog") and choice.finish_reason == "length"
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) > 8
    again = client.completions.create(**fields, n=2)
    assert ["the dog" + choice.text for choice in again.choices] == [c.text for c in answer.choices]


def test_streamed_completions(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "tiny", "prompt": ["the dog", "a"], "max_tokens": 12, "seed": 3, "n": 2,
    }  # fmt: skip
    whole = client.completions.create(**fields)
    texts, last = [""] * 4, None
    stream = client.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert last is not None and last.usage == whole.usage


def test_chats(client: openai.OpenAI, processor: TextProcessor) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 3}
    answer = client.chat.completions.create(
        **fields, n=2, max_completion_tokens=8, logprobs=True, top_logprobs=3
    )
    assert answer.object == "chat.completion"
    prompt = ChatTemplate(processor).encode(MESSAGES)
    assert answer.usage is not None and answer.usage.prompt_tokens == len(prompt)
    for choice in answer.choices:
        assert choice.message.role == "assistant" and choice.message.content is not None
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 8
        spelt = b"".join(bytes(each.bytes or []) for each in choice.logprobs.content)
        assert spelt.decode(errors="replace") == choice.message.content
        assert all(len(each.top_logprobs) == 3 for each in choice.logprobs.content)
    again = client.chat.completions.create(**fields, n=2, max_tokens=8)
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]


def test_streamed_chats(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "tiny", "messages": MESSAGES, "seed": 3, "n": 2, "max_tokens": 12,
        "logprobs": True,
    }  # fmt: skip
    whole = client.chat.completions.create(**fields)
    texts, reasons, tokens = [""] * 2, [""] * 2, [0] * 2
    roles: list[str | None] = []
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
            roles += [choice.delta.role] if choice.delta.role else []
            if choice.logprobs is not None:
                tokens[choice.index] += len(choice.logprobs.content or [])
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == ["length"] * 2 and roles == ["assistant"] * 2 and tokens == [12] * 2


def test_a_stop_text_ends_a_chat(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 5, "max_tokens": 20}
    whole = client.chat.completions.create(**fields).choices[0].message.content
    assert whole is not None
    stops = ["never"] * 31 + [whole[5:7]]
    choice = client.chat.completions.create(**fields, stop=stops).choices[0]
    assert choice.message.content == whole[: whole.index(whole[5:7])]
    assert choice.finish_reason == "stop"


def test_the_helper_for_streams_reads_them(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 1, "max_tokens": 20}
    whole = client.chat.completions.create(**fields).choices[0].message.content
    assert whole is not None
    stop = whole[6:8]  # the helper refuses an answer that max_tokens ends
    with client.chat.completions.stream(**fields, stop=stop) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole[: whole.index(stop)]


def test_an_answer_goes_back_into_the_conversation(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    told: Any = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": "x"}]
    longer = client.chat.completions.create(model="tiny", messages=told, max_tokens=2)
    assert longer.usage is not None and answer.usage is not None
    assert longer.usage.prompt_tokens > answer.usage.prompt_tokens


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 1000}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": 3}, openai.UnprocessableEntityError, None),
        ({"logit_bias": {"5": 1}}, openai.UnprocessableEntityError, None),
        ({"stop": ["a"] * 33}, openai.UnprocessableEntityError, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_class(
    client: openai.OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError],
    code: str | None, stream: bool,
) -> None:  # fmt: skip
    body = {"model": "tiny", "stream": stream, **fields}
    with pytest.raises(error) as caught:
        client.completions.create(prompt="a", **body)
    assert caught.value.code == code
    with pytest.raises(error) as caught:
        client.chat.completions.create(messages=MESSAGES, **body)
    assert caught.value.code == code


def test_a_full_queue_is_a_rate_limit() -> None:
    engine = tiny_engine(PLAIN, Room(0))
    with (
        served(engine) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.completions.create(model="tiny", prompt="a")
    assert caught.value.response.headers["retry-after"] == "1"


def test_a_wrong_key_is_an_authentication_error() -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    app = make_app("tiny", tiny_engine(PLAIN, Room(0)), keys=[digest])
    with listening(app) as url:
        for key, error in (("wrong", openai.AuthenticationError), ("right", openai.RateLimitError)):
            with (
                openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
                pytest.raises(error),
            ):
                client.completions.create(model="tiny", prompt="a")


def test_a_model_without_a_template_says_so() -> None:
    with (
        served(tiny_engine()) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
        pytest.raises(openai.BadRequestError, match="no chat template"),
    ):
        client.chat.completions.create(model="tiny", messages=MESSAGES)


def test_a_fault_in_a_stream_is_raised() -> None:
    room = Room(9, submitted=lambda slot: slot.end("error", "out of memory"))
    with (
        served(tiny_engine(PLAIN, room)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
        pytest.raises(openai.APIError, match="out of memory"),
    ):
        list(client.completions.create(model="tiny", prompt="a", stream=True))
