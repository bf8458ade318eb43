"""The log of requests, and the ids that name them."""

import asyncio
import errno
import os
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from orchestrator.errors import StageError, UserError
from orchestrator.job.file import load_job
from orchestrator.job.job import Job
from orchestrator.job.request_log import RequestLogConfig
from orchestrator.serve.app import make_app
from orchestrator.serve.exchange import Exchange, joined
from orchestrator.serve.logged import FOLDER, LoggedRequest, new_name, read_requests
from orchestrator.serve.request_log import LARGEST, MOST_WAITING, RequestLog
from orchestrator.storage.folder import Folder
from tests.unit.predicting import app_for
from tests.unit.served import JOB, listening, tiny_engine


class Counted:
    """Counts what the log tells."""

    def __init__(self) -> None:
        self.totals: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.totals[labels.get("reason", "logged")] += amount

    def measure(self, name: str, value: float, **labels: str) -> None: ...

    def show(self, name: str, value: float, **labels: str) -> None: ...


def hide_digits(record: dict[str, Any]) -> dict[str, Any]:
    text = str(record["request"]["inputs"][0]["text"])
    hidden = "".join("#" if sign.isdigit() else sign for sign in text)
    return record | {"request": {"inputs": [{"text": hidden}]}}


def keep_nothing(record: dict[str, Any]) -> None:
    """Drops the request."""


def fail(record: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(record["request"])


def forget_the_answer(record: dict[str, Any]) -> dict[str, Any]:
    return {"request": record["request"]}


async def hide_later(record: dict[str, Any]) -> dict[str, Any]:
    return record


def hide_two(record: dict[str, Any], other: str) -> dict[str, Any]:
    return record


def redacting(function: Callable[..., Any] | None) -> str | None:
    return None if function is None else f"{__name__}:{function.__name__}"


def config(function: Callable[..., Any] | None = None, **changes: Any) -> RequestLogConfig:
    return RequestLogConfig.model_validate(
        {"share": 1, "redact": redacting(function), "megabytes": 1, **changes}
    )


def exchange(number: int = 0, size: int = 10, **changes: Any) -> Exchange:
    values: dict[str, Any] = {
        "id": f"r{number}",
        "began": time.time(),
        "path": "/v1/predict",
        "version": "v",
        "status": 200,
        "complete": True,
        "seconds": 0.1,
        "request": b'{"n": %d}' % number,
        "answer": b'"' + os.urandom(size // 2).hex().encode() + b'"',
        "is_stream": False,
    }
    return Exchange(**{**values, **changes})


def files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*.parquet"))


def test_a_request_its_answer_version_id_and_time_are_read_back(tmp_path: Path) -> None:
    counted, before = Counted(), datetime.now(UTC)
    log = RequestLog(config(), Folder(str(tmp_path)), counted)
    api, _ = app_for("text_classification", log=log, version="train-1/step-5")
    body = {"inputs": [{"text": "a good one"}]}
    with TestClient(api) as client:
        answer = client.post("/v1/predict", json=body, headers={"x-request-id": "mine-1"})
        client.post("/v1/predict", json={"inputs": [{"text": " "}]})
        client.post("/v1/predict", content=b"{")
        client.get("/v1/models")
        client.get("/healthz")
    kept = list(read_requests(Folder(str(tmp_path))))
    assert [each.status for each in kept] == [200, 400, 422]
    first = kept[0]
    assert first.id == "mine-1" == answer.headers["x-request-id"]
    assert first.request == body and first.answer == answer.json()
    assert first.path == "/v1/predict" and first.version == "train-1/step-5"
    assert before <= first.time <= datetime.now(UTC) and 0 < first.seconds < 30
    assert first.complete
    assert kept[2].request == "{"  # no JSON: the text
    assert len({each.id for each in kept}) == 3
    assert counted.totals == {"logged": 3}


def test_a_stream_is_kept_as_the_answer_that_it_amounts_to(tmp_path: Path) -> None:
    log = RequestLog(config(), Folder(str(tmp_path)))
    body = {"prompt": ["the dog", "a fox"], "seed": 3, "max_tokens": 8}
    with TestClient(make_app(JOB.name, tiny_engine(), log=log)) as client:
        whole = client.post("/v1/completions", json=body).json()
        client.post("/v1/completions", json=body | {"stream": True})
    streamed = list(read_requests(Folder(str(tmp_path))))[1].answer
    assert streamed["object"] == "text_completion" and streamed["model"] == JOB.name
    for ours, theirs in zip(streamed["choices"], whole["choices"], strict=True):
        assert ours == {key: theirs[key] for key in ("index", "text", "finish_reason")}


def test_the_deltas_of_a_chat_are_joined_and_a_half_event_is_left_out() -> None:
    events = (
        b'data: {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n'
        b'data: {"id": "c", "choices": [{"index": 0, "delta": {"content": "He"}}]}\n\n'
        b'data: {"id": "c", "choices": [{"index": 0, "delta": {"content": "y"}, '
        b'"finish_reason": "stop"}]}\n\n'
        b'data: {"choices": [], "usage": {"total_tokens": 4}}\n\n'
        b'data: {"id": "c", "choi'
    )
    message = {"role": "assistant", "content": "Hey"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    assert joined(events) == {"id": "c", "usage": {"total_tokens": 4}, "choices": [choice]}


def test_a_client_that_leaves_in_mid_stream_is_told_from_one_that_stays(tmp_path: Path) -> None:
    log = RequestLog(config(), Folder(str(tmp_path)))
    body = {"prompt": "the dog", "max_tokens": 55, "stream": True}
    with listening(make_app(JOB.name, tiny_engine(), log=log)) as url:
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        httpx.post(f"{url}/v1/completions", json=body)
    kept = {each.complete: each for each in read_requests(Folder(str(tmp_path)))}
    assert set(kept) == {True, False}
    assert kept[False].status == 200
    assert len(kept[False].answer["choices"][0]["text"]) < len(
        kept[True].answer["choices"][0]["text"]
    )


def test_a_share_of_the_requests_is_kept(tmp_path: Path) -> None:
    log = RequestLog(config(share=0.25), Folder(str(tmp_path)))
    drawn = sum(log.draws() for _ in range(4000))
    assert 850 < drawn < 1150  # 5 standard deviations
    log.close()


@pytest.mark.parametrize("given", ["", "with space", "x" * 129, "ä", "-"])
def test_an_id_that_is_no_name_is_replaced_in_the_log_and_in_the_answer(
    tmp_path: Path, given: str
) -> None:
    log = RequestLog(config(), Folder(str(tmp_path)))
    api, _ = app_for("text_classification", log=log)
    headers = {"x-request-id": given.encode()}
    with TestClient(api) as client:
        body = {"inputs": [{"text": "a"}]}
        answer = client.post("/v1/predict", json=body, headers=headers)
    (kept,) = read_requests(Folder(str(tmp_path)))
    assert kept.id == answer.headers["x-request-id"] != given
    assert len(kept.id) == 32


def test_behind_ray_serve_the_proxys_id_is_left_alone(tmp_path: Path) -> None:
    api, _ = app_for("text_classification", behind_proxy=True)
    with TestClient(api) as client:
        answer = client.get("/healthz", headers={"x-request-id": "of-the-proxy"})
        assert "x-request-id" not in answer.headers  # the proxy adds it
        answer = client.get("/healthz", headers={"x-request-id": "a b"})
        assert len(answer.headers["x-request-id"]) == 32


def test_refusals_and_unknown_routes_have_an_id_but_no_line_without_a_key(tmp_path: Path) -> None:
    log = RequestLog(config(), Folder(str(tmp_path)))
    api, _ = app_for("text_classification", log=log, keys=["0" * 64])
    with TestClient(api) as client:
        answer = client.post("/v1/predict", json={"inputs": [{"text": "a"}]})
    assert answer.status_code == 401 and answer.headers["x-request-id"]
    assert list(read_requests(Folder(str(tmp_path)))) == []


def test_what_a_redaction_takes_out_is_not_written(tmp_path: Path) -> None:
    log = RequestLog(config(hide_digits), Folder(str(tmp_path)))
    api, _ = app_for("text_classification", log=log)
    with TestClient(api) as client:
        body = {"inputs": [{"text": "call 555 1234"}]}
        answer = client.post("/v1/predict", json=body).json()
    (kept,) = read_requests(Folder(str(tmp_path)))
    assert kept.request == {"inputs": [{"text": "call ### ####"}]} and kept.answer == answer
    (file,) = files(tmp_path)
    assert "555" not in str(pq.read_table(file).to_pylist())


@pytest.mark.parametrize(
    ("function", "dropped"), [(fail, 1), (forget_the_answer, 1), (keep_nothing, 0)]
)
def test_a_request_whose_redaction_fails_is_dropped_and_told_without_its_content(
    tmp_path: Path, function: Any, dropped: int, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted()
    log = RequestLog(config(function), Folder(str(tmp_path)), counted)
    log.add(exchange(request=b'"secret"'))
    log.close()
    assert files(tmp_path) == []
    assert counted.totals == ({"redaction": dropped} if dropped else {})
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("redact", "problem"),
    [
        ("nowhere", "import path"),
        ("nowhere.at_all:function", "ModuleNotFoundError"),
        (f"{__name__}:missing", "AttributeError"),
        (f"{__name__}:JOB", "not a function"),
        (f"{__name__}:hide_later", "async"),
        (f"{__name__}:hide_two", "one argument"),
    ],
)
def test_a_wrong_redaction_is_an_error_of_the_job_in_one_line(
    tmp_path: Path, redact: str, problem: str
) -> None:
    job = tmp_path / "job.yaml"
    text = f"{{share: 0.1, redact: '{redact}'}}"
    job.write_text(f"task: language_modelling\ndata: {{source: s}}\nserve: {{log: {text}}}\n")
    with pytest.raises(UserError, match=rf"job.yaml:3:\d+: serve.log.redact = .*{problem}") as got:
        load_job(str(job), [])
    assert len(str(got.value).splitlines()) == 1


def test_a_right_redaction_is_no_problem_and_there_is_no_log_by_default() -> None:
    given = JOB.model_dump(exclude_unset=True)
    serve = {"log": {"share": 0.1, "redact": redacting(hide_digits)}}
    assert Job.model_validate(given | {"serve": serve}).problems() == []
    assert JOB.serve.log is None


def test_the_log_stays_within_its_size_and_keeps_the_newest(tmp_path: Path) -> None:
    log = RequestLog(config(megabytes=1), Folder(str(tmp_path)))
    for number in range(60):
        log.add(exchange(number, size=60_000))  # random: it does not compress below half
        if number % 10 == 9:
            time.sleep(0.05)
    log.close()
    sizes = [file.stat().st_size for file in files(tmp_path)]
    assert len(sizes) > 3 and (1 << 19) < sum(sizes) <= 1 << 20
    kept = [each.request["n"] for each in read_requests(Folder(str(tmp_path)))]
    assert kept == list(range(60 - len(kept), 60)) and len(kept) < 60


def test_old_files_and_half_written_ones_are_deleted_and_strangers_stay(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    now = datetime.now(UTC)
    old, young = (folder / new_name(now - timedelta(days=days)) for days in (3, 1))
    stale, fresh = folder / ".x.parquet.0123.tmp", folder / ".y.parquet.0123.tmp"
    notes = folder / "notes.txt"
    for file in (old, young, stale, fresh, notes):
        file.write_bytes(b"x")
    os.utime(stale, (time.time() - 7200,) * 2)
    RequestLog(config(days=2), Folder(str(tmp_path))).close()
    assert set(folder.iterdir()) == {young, fresh, notes}


class Failing(Folder):
    """A storage that takes no file: full, or slower than the requests."""

    seconds = 0.0

    def __truediv__(self, name: str) -> "Failing":
        return type(self)(f"{self.uri}/{name}")

    def write(self, name: str, *content: bytes | memoryview) -> None:
        time.sleep(self.seconds)
        raise StageError(f"cannot write {name}: {os.strerror(errno.ENOSPC)}")


class Slow(Failing):
    seconds = 0.5


def test_a_full_disk_fails_no_request_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted()
    log = RequestLog(config(), Failing(str(tmp_path)), counted, seconds=0.01)
    api, _ = app_for("text_classification", log=log)
    with TestClient(api) as client:
        for _ in range(3):
            body = {"inputs": [{"text": "a"}]}
            assert client.post("/v1/predict", json=body).status_code == 200
            time.sleep(0.1)
    assert counted.totals == {"storage": 3}
    assert [r.message for r in caplog.records if "not logged" in r.message][1:] == []  # told once
    assert "No space left" in caplog.text


def test_a_slow_storage_holds_up_no_request_and_takes_no_more_memory_than_its_bound(
    tmp_path: Path,
) -> None:
    counted = Counted()
    log = RequestLog(config(megabytes=64), Slow(str(tmp_path)), counted)
    one = exchange(size=LARGEST // 2)
    count = 2 * MOST_WAITING // one.size
    begin = time.monotonic()
    for _ in range(count):
        log.add(one)
    assert time.monotonic() - begin < 0.4  # less than one write
    assert log._size <= MOST_WAITING
    assert counted.totals["full"] >= count // 3
    log.close()
    assert counted.totals["full"] + counted.totals["storage"] <= count


def test_a_request_that_is_too_large_is_dropped_and_counted(tmp_path: Path) -> None:
    counted = Counted()
    log = RequestLog(config(), Folder(str(tmp_path)), counted)
    log.add(exchange(size=2 * LARGEST))
    log.close()
    assert counted.totals == {"large": 1} and files(tmp_path) == []


def test_an_answer_without_end_is_not_collected_without_end(tmp_path: Path) -> None:
    """A long stream passes on as it is, and little of it is held."""
    from orchestrator.serve.log_requests import LogRequests

    parts, sent = 100, list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(parts):
            await send({"type": "http.response.body", "body": bytes(LARGEST), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))

    counted = Counted()
    log = RequestLog(config(), Folder(str(tmp_path)), counted)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(LogRequests(app, log)(scope, receive, send))
    log.close()
    assert sum(sent) == parts * LARGEST
    assert counted.totals == {"large": 1}


def test_a_span_of_time_is_read_back(tmp_path: Path) -> None:
    begin = datetime.now(UTC)
    for number in range(3):
        log = RequestLog(config(), Folder(str(tmp_path)))
        log.add(exchange(number, began=begin.timestamp() + 0.001 * number))
        time.sleep(0.01)
        log.close()
    moment = begin + timedelta(milliseconds=1)

    def numbers(**span: Any) -> list[int]:
        return [each.request["n"] for each in read_requests(Folder(str(tmp_path)), **span)]

    assert numbers() == [0, 1, 2]
    assert numbers(since=moment - timedelta(microseconds=10)) == [1, 2]
    assert numbers(until=moment - timedelta(microseconds=10)) == [0]
    assert numbers(since=datetime.now(UTC)) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    log = RequestLog(config(), Folder(str(tmp_path)))
    log.add(exchange())
    log.close()
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{file.name}: is damaged"):
        list(read_requests(Folder(str(tmp_path))))


@pytest.mark.parametrize("text", [b'"\\ud800"', b"[" * 5000, b"\xff", b"NaN", b'{"a": 1e999}'])
def test_whatever_a_client_sends_can_be_logged(tmp_path: Path, text: bytes) -> None:
    counted = Counted()
    log = RequestLog(config(), Folder(str(tmp_path)), counted)
    log.add(exchange(request=text))
    log.close()
    (kept,) = read_requests(Folder(str(tmp_path)))
    assert isinstance(kept, LoggedRequest) and counted.totals == {"logged": 1}
