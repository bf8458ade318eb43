"""Hugging Face's own client asks the endpoint, over a real server, without a change."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import pytest

from tests.unit.predicting import CONTEXT, app_for
from tests.unit.served import listening

QUESTION = "Who sleeps?"
Client = Callable[[str], Any]


@pytest.fixture(scope="module")
def urls() -> Iterator[Callable[[str], str]]:
    """The URL of a server for a task, started once."""
    running: dict[str, Any] = {}

    def of(task_name: str) -> str:
        if task_name not in running:
            server = listening(app_for(task_name)[0])
            running[task_name] = (server, server.__enter__())
        url: str = running[task_name][1]
        return url

    yield of
    for server, _ in running.values():
        server.__exit__(None, None, None)


@pytest.fixture
def client(urls: Callable[[str], str]) -> Client:
    return lambda task_name: huggingface_hub.InferenceClient(model=urls(task_name), token="none")


def own(urls: Callable[[str], str], task_name: str, row: dict[str, str]) -> dict[str, Any]:
    """The endpoint's own answer for a row."""
    answer = httpx.post(f"{urls(task_name)}/v1/predict", json={"inputs": [row]})
    output: dict[str, Any] = answer.raise_for_status().json()["outputs"][0]
    return output


def test_text_classification(client: Client, urls: Any) -> None:
    text = "a good one"
    found = client("text_classification").text_classification(text)
    expected = own(urls, "text_classification", {"text": text})["probabilities"]
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert {each.label: each.score for each in found} == pytest.approx(expected, rel=1e-4)
    best = client("text_classification").text_classification(text, top_k=1)
    assert [each.label for each in best] == [found[0].label]


def test_a_number_is_a_classification_of_one_label(client: Client, urls: Any) -> None:
    found = client("text_regression").text_classification("five stars")
    expected = own(urls, "text_regression", {"text": "five stars"})["number"]
    assert [(each.label, each.score) for each in found] == [
        ("LABEL_0", pytest.approx(expected, rel=1e-4))
    ]


def test_translation(client: Client, urls: Any) -> None:
    found = client("translation").translation("the dog sleeps")
    expected = own(urls, "translation", {"source": "the dog sleeps"})["target"]
    assert found.translation_text == expected


def test_an_extracted_answer_has_its_place_in_the_context(client: Client, urls: Any) -> None:
    task = "extractive_question_answering"
    found = client(task).question_answering(question=QUESTION, context=CONTEXT)
    expected = own(urls, task, {"question": QUESTION, "context": CONTEXT})
    assert found.score == pytest.approx(expected["probability"], rel=1e-4)
    assert found.answer == CONTEXT[found.start : found.end] == found.answer.strip()
    assert found.answer == expected["answer"]


def test_a_written_answer_has_a_place_only_if_it_stands_there(client: Client, urls: Any) -> None:
    task = "question_answering"
    found = client(task).question_answering(question=QUESTION, context=CONTEXT)
    assert found.answer == own(urls, task, {"question": QUESTION, "context": CONTEXT})["answer"]
    if found.start is not None:
        assert CONTEXT[found.start : found.end] == found.answer


def test_fill_mask(client: Client) -> None:
    task = "masked_language_modelling"
    found = client(task).fill_mask("The dog <|mask|> under the old tree.")
    scores = [each.score for each in found]
    assert len(found) == 5 and scores == sorted(scores, reverse=True) and sum(scores) <= 1
    best = found[0]
    assert best.sequence.startswith("The dog") and best.sequence.endswith(" under the old tree.")
    assert best.token_str in best.sequence and "<|mask|>" not in best.sequence
    every = client(task).fill_mask("The dog <|mask|> under the old tree.", top_k=1000)
    assert sum(each.score for each in every) == pytest.approx(1, abs=1e-4)
    by_word = {each.token_str: each.score for each in every}
    targets = client(task).fill_mask("The dog <|mask|> under the old tree.", targets=["cat", "dog"])
    assert {t.token_str: t.score for t in targets} == pytest.approx(
        {t.token_str: by_word[t.token_str] for t in targets}, rel=1e-4
    )
    two = client(task).fill_mask("The <|mask|> sleeps under the <|mask|> tree.", top_k=2)
    assert [len(fillings) for fillings in two] == [2, 2]


def test_embeddings(urls: Any) -> None:
    url = f"{urls('text_classification')}/models/tiny/pipeline/feature-extraction"
    client = huggingface_hub.InferenceClient(model=url, token="none")
    vectors = client.feature_extraction(["a good one", "a bad one"])
    assert vectors.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(client.feature_extraction("a bad one")[0], vectors[1], rtol=1e-4)


def test_the_models_own_address_answers_too(urls: Any) -> None:
    url = f"{urls('text_classification')}/models/tiny"
    assert huggingface_hub.InferenceClient(model=url, token="none").text_classification(
        "a good one"
    )
    other = httpx.post(f"{urls('text_classification')}/models/other", json={"inputs": "a"})
    assert other.status_code == 404


def test_an_error_reaches_the_user_in_our_words(client: Client) -> None:
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="holds nothing"):
        client("text_classification").text_classification(" ")


@pytest.mark.parametrize(
    ("task_name", "body", "status", "message"),
    [
        ("text_classification", {"inputs": []}, 422, "inputs: must hold 1 to 64 inputs"),
        ("text_classification", {"inputs": 3}, 422, "inputs"),
        ("text_classification", {"inputs": "a", "parameters": {"top_k": 0}}, 422, "top_k"),
        ("text_classification", {"inputs": "a", "parameters": {"k": 1}}, 422, "parameters.k"),
        (
            "text_classification",
            {"inputs": "a", "parameters": {"function_to_apply": "sigmoid"}},
            422,
            "parameters.function_to_apply",
        ),
        ("translation", {"inputs": "a", "parameters": {"src_lang": "de"}}, 422, "src_lang"),
        ("question_answering", {"inputs": {"context": "a"}}, 400, "must hold context, question"),
        ("extractive_question_answering", {"inputs": "a"}, 400, "object with context and question"),
        ("masked_language_modelling", {"inputs": "no mask"}, 400, "masks, written <|mask|>"),
        ("masked_language_modelling", {"inputs": "<|mask|>" * 9}, 400, "1 to 8 masks"),
        ("masked_language_modelling", {"inputs": "z" * 99 + "<|mask|>"}, 400, "context of 64"),
        ("masked_language_modelling", {"inputs": {"text": "<|mask|>"}}, 422, "must be a text"),
        ("masked_language_modelling", {"inputs": "\ud800<|mask|>"}, 400, "not valid Unicode"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    urls: Any, task_name: str, body: dict[str, Any], status: int, message: str
) -> None:
    content, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    answer = httpx.post(urls(task_name), content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_lists_are_answered_by_lists(urls: Any) -> None:
    url = urls("text_classification")
    two = httpx.post(url, json={"inputs": ["a good one", "a bad one"]}).json()
    assert [len(answer) for answer in two] == [3, 3]
    objects = httpx.post(url, json={"inputs": [{"text": "a good one"}], "options": {}}).json()
    assert objects[0][0]["label"] == two[0][0]["label"]
    masked = httpx.post(urls("masked_language_modelling"), json={"inputs": ["a <|mask|>"]}).json()
    assert len(masked) == 1 and len(masked[0]) == 5
