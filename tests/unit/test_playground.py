"""The playground's routes: the page and its files, and what it is told of the model."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orchestrator.job.api_keys import digest_of
from orchestrator.serve import playground
from orchestrator.serve.app import make_app
from tests.unit.predicting import app_for
from tests.unit.served import CONTEXT, JOB, chat_processor, tiny_engine

KEY = "sk-playground"


@pytest.fixture(scope="module")
def keyed() -> Iterator[TestClient]:
    api, _ = app_for("question_answering", keys=[digest_of(KEY)])
    with TestClient(api) as client:
        yield client


def test_the_page_and_all_that_it_loads_need_no_key(keyed: TestClient) -> None:
    page = keyed.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    loaded = set(re.findall(r'(?:src|href)="([^"]+)"', page.text))
    scripts = [path for path in loaded if path.endswith(".js")]
    for script in scripts:
        names = re.findall(r'from "\./([^"]+)"', keyed.get(f"/{script}").text)
        new = {f"playground/{name}" for name in names} - loaded
        loaded |= new
        scripts += new
    assert {f"/{path}" for path in loaded} == playground.PAGE_PATHS - {"/"}
    for path in loaded:
        answer = keyed.get(f"/{path}")
        assert answer.status_code == 200 and answer.content
        assert keyed.head(f"/{path}").status_code == 200
    types = {path: keyed.get(path).headers["content-type"] for path in playground.PAGE_PATHS}
    assert "javascript" in types["/playground/page.js"] and "css" in types["/playground/style.css"]


def test_every_file_is_served_and_packaged() -> None:
    assert {*playground.STATIC.iterdir(), playground.BASE} == set(playground.FILES.values())
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"static/*"' in project and '"serve/static/*"' in project


def test_the_page_may_load_only_what_this_endpoint_has(keyed: TestClient) -> None:
    for path in playground.PAGE_PATHS:
        headers = keyed.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_nothing_else_is_free_of_keys(keyed: TestClient) -> None:
    for path in ("/v1/playground", "/playground", "/playground/", "/playground/../v1/models"):
        assert keyed.get(path).status_code == 401, path
    assert keyed.post("/", json={"inputs": "a"}).status_code == 401
    assert keyed.post("/playground/page.js").status_code == 401
    assert keyed.delete("/").status_code == 401


def test_below_a_prefix_the_page_is_where_the_prefix_ends() -> None:
    api, _ = app_for("translation", keys=[digest_of(KEY)])
    with TestClient(api, root_path="/b") as client:
        assert client.get("/b/").status_code == 200
        moved = client.get("/b", follow_redirects=False)
        assert (moved.status_code, moved.headers["location"][-3:]) == (307, "/b/")
        assert client.get("/b/playground/page.js").status_code == 200
        assert client.get("/b/v1/playground").status_code == 401
        assert client.post("/b", json={}).status_code == 401


def test_the_page_is_told_of_the_inputs_of_predictions(keyed: TestClient) -> None:
    told = keyed.get("/v1/playground", headers={"Authorization": f"Bearer {KEY}"})
    inputs = [{"name": "context", "optional": True}, {"name": "question", "optional": False}]
    assert told.json() == {
        "model": "tiny",
        "task": "question_answering",
        "text": None,
        "inputs": inputs,
    }


@pytest.mark.parametrize("chat", [False, True])
def test_the_page_is_told_what_text_the_model_generates(chat: bool) -> None:
    engine = tiny_engine(chat_processor()) if chat else tiny_engine()
    with TestClient(make_app(JOB.name, engine)) as client:
        told = client.get("/v1/playground").json()
    text = {
        "chat": chat,
        "context": CONTEXT,
        "max_tokens": JOB.serve.max_tokens,
        "prompt": JOB.serve.sample_prompt,
    }
    assert told == {"model": "tiny", "task": "language_modelling", "text": text, "inputs": []}


def test_hugging_faces_route_is_still_at_the_same_address() -> None:
    with TestClient(app_for("text_classification")[0]) as client:
        answer = client.post("/", json={"inputs": "a good one"})
    assert answer.status_code == 200 and answer.json()[0][0]["score"] > 0
