"""Completing texts with a tiny random model, over HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from orchestrator.serve.app import make_app
from orchestrator.serve.completion_protocol import CompletionResponse
from orchestrator.serve.text_engine import TextEngine
from tests.unit.served import CONTEXT, JOB, PLAIN, log_softmax, tiny_engine, trained_model


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(JOB.name, tiny_engine())) as found:
        yield found


def complete(client: TestClient, prompt: Any = "the dog", **fields: Any) -> CompletionResponse:
    answer = client.post("/v1/completions", json={"prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    return CompletionResponse.model_validate(answer.json())


def refused(client: TestClient, prompt: Any = "the dog", **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"prompt": prompt, **fields})
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


def streamed(client: TestClient, prompt: Any = "the dog", **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    body = {"prompt": prompt, "stream": True, **fields}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = "".join(answer.iter_text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def texts(response: CompletionResponse) -> list[str]:
    return [choice.text for choice in response.choices]


# Counting


def test_usage_counts_the_tokens_of_the_prompt_and_of_every_choice(
    client: TestClient,
) -> None:
    one = complete(client, max_tokens=5, temperature=0)
    three = complete(client, max_tokens=5, temperature=0, n=3)
    assert one.choices[0].finish_reason == "length"
    assert one.usage.completion_tokens == 5
    assert three.usage.completion_tokens == 15
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    for usage in (one.usage, three.usage):
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_longer_prompt_counts_more_tokens(client: TestClient) -> None:
    counts = [complete(client, "a b " * i).usage.prompt_tokens for i in range(4)]
    assert counts == sorted(set(counts))


def test_without_max_tokens_the_jobs_own_number_is_generated(client: TestClient) -> None:
    response = complete(client, temperature=0)
    assert response.usage.completion_tokens == JOB.serve.max_tokens


def test_without_max_tokens_a_long_prompt_gets_what_is_left_of_the_context(
    client: TestClient,
) -> None:
    prompt = "?" * (CONTEXT - 4)
    usage = complete(client, prompt, temperature=0).usage
    assert usage.total_tokens == CONTEXT
    assert 0 < usage.completion_tokens < JOB.serve.max_tokens


def test_an_empty_prompt_begins_a_document(client: TestClient) -> None:
    response = complete(client, "", max_tokens=3, seed=0)
    assert response.usage.completion_tokens == 3
    assert response.usage.prompt_tokens > 0


# Choices and seeds


def test_a_seed_gives_the_same_texts_again(client: TestClient) -> None:
    first = texts(complete(client, seed=7, n=3, max_tokens=10))
    complete(client, seed=8)
    assert texts(complete(client, seed=7, n=3, max_tokens=10)) == first


def test_choices_differ_from_each_other_and_are_numbered(client: TestClient) -> None:
    response = complete(client, seed=7, n=8, max_tokens=10)
    assert len(set(texts(response))) == 8
    assert [choice.index for choice in response.choices] == list(range(8))


def test_without_a_seed_texts_differ(client: TestClient) -> None:
    found = {texts(complete(client, max_tokens=10))[0] for _ in range(3)}
    assert len(found) == 3


def test_the_largest_seed_has_room_for_all_choices(client: TestClient) -> None:
    assert len(complete(client, seed=2**63 - 1, n=8, max_tokens=2).choices) == 8


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}])
def test_greedy_settings_need_no_seed(client: TestClient, settings: dict[str, Any]) -> None:
    greedy = texts(complete(client, temperature=0, max_tokens=10))
    assert texts(complete(client, max_tokens=10, **settings)) == greedy


@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-40, 1e-9, 2.0])
def test_every_accepted_temperature_gives_a_text(client: TestClient, temperature: float) -> None:
    assert complete(client, temperature=temperature, max_tokens=3).usage.completion_tokens > 0


# Stops and echo


def test_a_stop_text_and_what_follows_it_are_cut(client: TestClient) -> None:
    whole = texts(complete(client, seed=3, max_tokens=20))[0]
    stop = whole[8:10]
    response = complete(client, seed=3, max_tokens=20, stop=stop)
    assert texts(response) == [whole[: whole.index(stop)]]
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.completion_tokens < 20


def test_the_stop_text_that_comes_first_counts(client: TestClient) -> None:
    whole = texts(complete(client, seed=3, max_tokens=20))[0]
    early, late = whole[4:6], whole[-2:]
    response = complete(client, seed=3, max_tokens=20, stop=[late, early, "never in it"])
    assert texts(response) == [whole[: min(whole.index(early), whole.index(late))]]


def test_a_stop_text_that_never_comes_changes_nothing(client: TestClient) -> None:
    whole = complete(client, seed=3, max_tokens=20)
    stopped = complete(client, seed=3, max_tokens=20, stop=["never in it", "\U0001f9ff"])
    assert texts(stopped) == texts(whole)
    assert stopped.choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stop_text_in_the_prompt_stops_nothing(client: TestClient) -> None:
    response = complete(client, "never", temperature=0, max_tokens=4, stop="never", echo=True)
    assert response.usage.completion_tokens == 4


def test_echo_puts_the_prompt_before_the_text(client: TestClient) -> None:
    plain = texts(complete(client, "ä dog", seed=3, n=2))
    echoed = texts(complete(client, "ä dog", seed=3, n=2, echo=True))
    assert echoed == ["ä dog" + text for text in plain]


def test_the_end_token_in_a_prompt_is_plain_text(client: TestClient) -> None:
    usage = complete(client, "<|endoftext|>").usage
    assert usage.prompt_tokens > complete(client, "").usage.prompt_tokens + 1


# Refusals


def test_more_tokens_than_the_context_holds_are_refused(client: TestClient) -> None:
    room = CONTEXT - complete(client, max_tokens=1).usage.prompt_tokens
    complete(client, max_tokens=room)
    for too_many in (room + 1, 1_000_000):
        error = refused(client, max_tokens=too_many)
        assert error["code"] == "context_length_exceeded"
        assert all(number in error["message"] for number in (str(too_many), str(CONTEXT)))


@pytest.mark.parametrize("max_tokens", [None, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused(
    client: TestClient, max_tokens: int | None, stream: bool
) -> None:
    for prompt in ("?" * CONTEXT, "?" * 100_000, [5] * CONTEXT, ["a", "?" * 1000]):
        error = refused(client, prompt, max_tokens=max_tokens, stream=stream)
        assert error["code"] == "context_length_exceeded"
        assert f"context of {CONTEXT}" in error["message"]


def test_a_request_that_takes_longer_than_it_may_is_given_up() -> None:
    serve = JOB.serve.model_copy(update={"deadline_seconds": 1e-6})
    engine = TextEngine(JOB.model_copy(update={"serve": serve}), trained_model())
    with TestClient(make_app(JOB.name, engine)) as client:
        answer = client.post("/v1/completions", json={"prompt": "the dog"})
    assert answer.status_code == 504
    assert "longer than it may" in answer.json()["error"]["message"]


def test_weights_of_8_bits_give_nearly_the_same_log_probabilities(client: TestClient) -> None:
    serve = JOB.serve.model_copy(update={"weights": "int8"})
    engine = TextEngine(JOB.model_copy(update={"serve": serve}), trained_model())
    asked = {"echo": True, "logprobs": 0, "max_tokens": 0}
    exact = complete(client, **asked).choices[0].logprobs
    with TestClient(make_app(JOB.name, engine)) as other:
        near = complete(other, **asked).choices[0].logprobs
    assert exact is not None and near is not None
    assert near.token_logprobs[1:] == pytest.approx(exact.token_logprobs[1:], rel=0.05, abs=0.05)
    assert near.token_logprobs[1:] != exact.token_logprobs[1:]


def test_another_model_is_refused_by_name(client: TestClient) -> None:
    assert complete(client, model="tiny").model == "tiny"
    answer = client.post("/v1/completions", json={"prompt": "a", "model": "gpt-9"})
    assert answer.status_code == 404
    assert "gpt-9" in answer.json()["error"]["message"] and "tiny" in answer.text


def test_a_token_that_the_vocabulary_lacks_is_refused(client: TestClient) -> None:
    error = refused(client, [1, PLAIN.vocab_size])
    assert error["param"] == "prompt" and str(PLAIN.vocab_size) in error["message"]


def test_every_answer_has_its_own_id(client: TestClient) -> None:
    assert complete(client).id != complete(client).id


# Token ids, several prompts


def test_token_ids_are_taken_as_they_are(client: TestClient) -> None:
    tokens = PLAIN.encode("the dog")
    assert complete(client, tokens, max_tokens=1).usage.prompt_tokens == len(tokens)
    same = complete(client, [PLAIN.end_token, *tokens], temperature=0, max_tokens=9)
    assert texts(same) == texts(complete(client, "the dog", temperature=0, max_tokens=9))


def test_each_prompt_gets_its_choices_in_order(client: TestClient) -> None:
    prompts = ["the dog", "a fox", ""]
    alone = [text for prompt in prompts for text in texts(complete(client, prompt, seed=5, n=2))]
    together = complete(client, prompts, seed=5, n=2)
    assert texts(together) == alone
    assert [choice.index for choice in together.choices] == list(range(6))
    ids = [[PLAIN.end_token, *PLAIN.encode(prompt)] for prompt in prompts]
    assert texts(complete(client, ids, seed=5, n=2)) == texts(together)
    assert together.usage.prompt_tokens == sum(map(len, ids))


# Log-probabilities


def test_log_probabilities_are_the_models_own(client: TestClient) -> None:
    tokens = [PLAIN.end_token, *PLAIN.encode("the quick dog")]
    choice = complete(client, tokens, echo=True, logprobs=3, max_tokens=4, temperature=0).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    generated = [choice for choice in found.tokens[len(tokens) :]]
    assert len(generated) == 4
    logprobs_TV = log_softmax(tokens)
    for position, token in enumerate(tokens[1:]):
        own = float(logprobs_TV[position, token])
        assert found.token_logprobs[position + 1] == pytest.approx(own, abs=1e-5)
        top = found.top_logprobs[position + 1]
        assert top is not None and len(top) in (3, 4)
        assert max(top.values()) == pytest.approx(float(logprobs_TV[position].max()), abs=1e-5)
        is_greedy = found.token_logprobs[position + 1] == max(top.values())
        assert is_greedy == (int(logprobs_TV[position].argmax()) == token)
    first = float(logprobs_TV[-1].max())
    assert found.token_logprobs[len(tokens)] == pytest.approx(first, abs=1e-5)


def test_the_tokens_of_a_text_begin_where_they_say(client: TestClient) -> None:
    choice = complete(client, "the dog", echo=True, logprobs=0, max_tokens=6, seed=0).choices[0]
    found = choice.logprobs
    assert found is not None and len(found.tokens) == len(PLAIN.encode("the dog")) + 6
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text.startswith(token, offset)
    assert found.token_logprobs[0] is None  # though it follows an end token
    assert found.text_offset == sorted(found.text_offset)
    assert all(top is None or len(top) == 1 for top in found.top_logprobs)


def test_scoring_a_prompt_gives_exactly_one_more_token_even_an_end() -> None:
    trained = trained_model()
    with torch.no_grad():  # all tokens are equally likely, and the first is the end token
        trained.model.head.logits.weight.zero_()
    engine = TextEngine(JOB, trained)
    tokens = PLAIN.encode("the dog")
    with TestClient(make_app(JOB.name, engine)) as client:
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "logprobs": 1}
        scored = complete(client, tokens, echo=True, **fields)
        assert len(scored.choices[0].logprobs.tokens) == len(tokens) + 1
        assert scored.choices[0].text == "the dog"
        assert scored.choices[0].finish_reason == "stop"
        plain = complete(client, tokens, **fields)
        assert plain.choices[0].logprobs.tokens == []
        assert plain.usage.completion_tokens == 0


def test_no_token_at_all_scores_the_prompt_alone(client: TestClient) -> None:
    answer = complete(client, "the dog", echo=True, logprobs=1, max_tokens=0)
    assert answer.choices[0].text == "the dog"
    assert len(answer.choices[0].logprobs.tokens) == len(PLAIN.encode("the dog"))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 0
    assert texts(complete(client, "the dog", echo=True, max_tokens=0)) == ["the dog"]


def test_the_tokens_after_a_stop_text_are_not_listed(client: TestClient) -> None:
    whole = complete(client, seed=3, max_tokens=20, logprobs=0).choices[0]
    stop = whole.text[8:10]
    cut = complete(client, seed=3, max_tokens=20, logprobs=0, stop=stop).choices[0]
    assert cut.logprobs.tokens == whole.logprobs.tokens[: len(cut.logprobs.tokens)]
    assert all(offset < len(cut.text) for offset in cut.logprobs.text_offset)


# Streams


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_joins_to_the_whole_answer(client: TestClient, seed: int) -> None:
    whole = complete(client, "the dö", seed=seed, max_tokens=30)
    fields: dict[str, Any] = {"seed": seed, "max_tokens": 30, "n": 3, "echo": seed % 2 == 1}
    fields |= {"stop": [whole.choices[0].text[9:11] or "x", "the", "zzz"], "logprobs": 2}
    answer = complete(client, "the dö", **fields)
    chunks = streamed(client, "the dö", **fields)
    for choice in answer.choices:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice.index]
        assert "".join(each["text"] for each in own) == choice.text
        assert [each["finish_reason"] for each in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice.finish_reason
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [value for each in own for value in each["logprobs"][name]]
            assert joined == getattr(choice.logprobs, name)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_sends_no_half_characters_and_nothing_of_a_stop_text(client: TestClient) -> None:
    whole = texts(complete(client, seed=3, max_tokens=40))[0]
    stop = whole[20:24]
    sent = [c["text"] for chunk in streamed(client, seed=3, max_tokens=40, stop=stop)
            for c in chunk["choices"]]  # fmt: skip
    assert "".join(sent) == whole[: whole.index(stop)]
    assert len(sent) > 2


def test_the_usage_comes_last_if_it_is_asked_for(client: TestClient) -> None:
    fields: dict[str, Any] = {"seed": 1, "n": 2, "max_tokens": 4}
    chunks = streamed(client, stream_options={"include_usage": True}, **fields)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    usage = complete(client, **fields).usage
    assert chunks[-1]["usage"] == usage.model_dump()
