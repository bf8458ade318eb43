"""A path without its last slash, or with one too many, finds its way behind any proxy."""

from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from tests.unit.predicting import app_for


@pytest.mark.parametrize(
    ("prefix", "path", "target"),
    [
        ("/reviews", "/reviews", "/reviews/"),
        ("/a/b", "/a/b", "/a/b/"),
        ("/reviews", "/reviews/v1/models/", "/reviews/v1/models"),
        ("", "/v1/models/?a=1", "/v1/models?a=1"),
    ],
)
def test_a_redirect_is_relative(prefix: str, path: str, target: str) -> None:
    api, _ = app_for("text_classification")
    with TestClient(api, root_path=prefix) as client:
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 307
        location = answer.headers["location"]
        assert ":" not in location and not location.startswith("/")
        assert urljoin(f"https://outside{path}", location) == f"https://outside{target}"
        # A proxy that serves the endpoint below a path of its own needs no rewriting either.
        assert urljoin(f"https://outside/x{path}", location) == f"https://outside/x{target}"
        assert client.get(path).status_code == 200


def test_a_posted_body_is_kept() -> None:
    api, _ = app_for("text_classification")
    with TestClient(api, root_path="/reviews") as client:
        answer = client.post("/reviews", json={"inputs": "a good one"})
        assert answer.status_code == 200 and answer.json()[0][0]["label"]


def test_no_path_leads_to_another_host() -> None:
    api, _ = app_for("text_classification")
    with TestClient(api) as client:
        for path in ("//evil.example/v1/models/", "//evil.example/", "/\\evil.example/", "//"):
            answer = client.get(f"http://testserver{path}", follow_redirects=False)
            if answer.is_redirect:
                target = urljoin(f"https://outside{path}", answer.headers["location"])
                assert target.startswith("https://outside/")
