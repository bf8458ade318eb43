"""Who may talk to the dashboard: tokens, host names, and pages of other sites."""

import socket
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.cli import main
from orchestrator.dashboard import server
from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.catalog import Catalog
from orchestrator.storage.folder import Folder
from tests.make_sweep import FINGERPRINT, plan

TOKEN = "a token of some length"
STOP = f"/api/runs/reviews/sweeps/{FINGERPRINT}/stop"
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    record, _ = plan(trials=1)
    record.save(Folder(str(tmp_path / "reviews" / FINGERPRINT)))
    return Catalog(Folder(str(tmp_path)))


@pytest.fixture
def locked(catalog: Catalog) -> TestClient:
    return TestClient(make_app(catalog, TOKEN, None), follow_redirects=False)


@pytest.fixture
def local(catalog: Catalog) -> TestClient:
    return TestClient(make_app(catalog, None, LOCAL), base_url="http://127.0.0.1:8600")


@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/app.js", "/plotly.js", "/nothing"])
def test_nothing_is_shown_without_the_token(locked: TestClient, path: str) -> None:
    answer = locked.get(path)
    assert answer.status_code == 401
    assert "token" in answer.json()["error"] and TOKEN not in answer.text
    assert locked.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert locked.get(path, cookies={"orchestrator-80": "wrong"}).status_code == 401


def test_the_printed_address_opens_the_dashboard_for_that_browser(locked: TestClient) -> None:
    answer = locked.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie
    assert locked.get("/").status_code == 200  # the client keeps the cookie
    assert locked.get("/api/runs").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ä"])
def test_another_token_opens_nothing(locked: TestClient, token: str) -> None:
    answer = locked.get("/", params={"token": token})
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert locked.get("/api/runs", params={"token": TOKEN}).status_code == 401


def test_programs_send_the_token_in_a_header(locked: TestClient) -> None:
    answer = locked.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200


def test_actions_need_the_token_too(locked: TestClient) -> None:
    assert locked.post(STOP, headers={"x-orchestrator": "1"}).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8600", "", "127.0.0.1.evil.example"]
)
def test_other_names_do_not_lead_to_this_machine(local: TestClient, host: str) -> None:
    answer = local.get("/api/runs", headers={"host": host})
    assert answer.status_code == 403


@pytest.mark.parametrize("host", ["localhost:8600", "127.0.0.1", "[::1]:8600", "LOCALHOST"])
def test_its_own_names_do(local: TestClient, host: str) -> None:
    assert local.get("/api/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-orchestrator": "1", "origin": "http://evil.example"},
        {"x-orchestrator": "1", "origin": "null"},
        {"x-orchestrator": "1", "sec-fetch-site": "cross-site"},
        {"x-orchestrator": "1", "sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_sites_start_nothing(local: TestClient, headers: dict[str, str]) -> None:
    answer = local.post(STOP, headers=headers)
    assert (answer.status_code, "another site" in answer.json()["error"]) == (403, True)


def test_its_own_page_may_act(local: TestClient) -> None:
    own = {"origin": "http://127.0.0.1:8600", "sec-fetch-site": "same-origin"}
    answer = local.post(STOP, headers={"x-orchestrator": "1", **own})
    assert answer.status_code == 400 and "nothing to stop" in answer.json()["error"]


def test_every_answer_forbids_what_the_page_does_not_need(local: TestClient) -> None:
    for path in ("/", "/api/runs", "/static/app.js", "/api/runs/x/sweeps/y"):
        headers = local.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/"])
def test_nothing_but_the_page_is_served(local: TestClient, path: str) -> None:
    assert local.get(path).status_code == 404


# The command


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["dashboard", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_of_the_command_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in mistake(capsys)
    (tmp_path / "job.yaml").write_text("name: a\n")
    assert "is a file" in mistake(capsys, "job.yaml")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = mistake(capsys, str(tmp_path), "--port", port)
    assert port in told and "--port" in told
    assert "cannot listen" in mistake(capsys, str(tmp_path), "--port", "70000")
    assert "cannot listen" in mistake(capsys, str(tmp_path), "--host", "no.such.host.invalid")
    assert "at least 16" in mistake(capsys, str(tmp_path), "--token", "short")
    monkeypatch.setenv("ORCHESTRATOR_DASHBOARD_TOKEN", "short")
    assert "at least 16" in mistake(capsys, str(tmp_path))


@pytest.mark.parametrize(
    ("host", "given", "token", "name"),
    [
        ("127.0.0.1", None, False, "127.0.0.1"),
        ("localhost", None, False, "localhost"),
        ("127.0.0.1", TOKEN, True, "127.0.0.1"),
        ("0.0.0.0", None, True, socket.gethostname()),
    ],
)
def test_others_are_asked_for_a_token(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    given: str | None,
    token: bool,
    name: str,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: None)
    server.serve(str(tmp_path), host, 0, given, told.append)
    (address,) = told
    assert address.startswith(f"http://{name}:")
    assert ("token=" in address) == token
