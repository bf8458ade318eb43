"""The dashboard's page in a real browser. Skipped if Chromium is not installed."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from orchestrator.dashboard import actions
from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.catalog import Catalog
from orchestrator.storage import lease
from orchestrator.storage.folder import Folder
from orchestrator.tune.records import Point, SweepRecord, Trial
from tests.make_sweep import (
    FINGERPRINT,
    exploit,
    moved,
    plan,
    write_finished,
    write_log,
    write_start,
    write_trial,
)

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

Page = Any  # playwright's; playwright may be missing
HOSTILE = "<img src=x onerror=alert(1)>"
COMMAND = "orchestrator run job.yaml train.minutes=20"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Served:
    """A dashboard server for a storage, in a thread of this process."""

    def __init__(self, storage: Path, token: str | None) -> None:
        app = make_app(Catalog(Folder(str(storage))), token, frozenset({"127.0.0.1"}))
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.address = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


class Watched:
    """A page that records its errors, warnings, dialogs and requests to other hosts."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.context = browser.new_context(
            **{"viewport": {"width": 1400, "height": 900}, **options}
        )
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        self.page: Page = self.context.new_page()
        self.troubles: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("request", self._request)
        self.page.on("dialog", lambda dialog: self.troubles.append(f"dialog: {dialog.message}"))

    def _console(self, message: Any) -> None:
        # The second warning comes from this test, which reads canvases.
        expected = ("status of 400", "willReadFrequently")
        if message.type in ("error", "warning") and not any(e in message.text for e in expected):
            self.troubles.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.troubles.append(f"request to {request.url}")

    def open(self, path: str = f"/#/reviews/{FINGERPRINT}") -> Page:
        self.page.goto(f"{self.address}{path}")
        return self.page


Show = Callable[..., Watched]


@pytest.fixture
def show(browser: Any) -> Iterator[Show]:
    """Opens the dashboard of a storage. At the end the pages close before their servers, and the
    test fails if a page recorded troubles."""
    servers: dict[Path, Served] = {}
    opened: list[Watched] = []

    def show_one(storage: Path, token: str | None = None, **options: Any) -> Watched:
        if storage not in servers:
            servers[storage] = Served(storage, token)
        opened.append(Watched(browser, servers[storage].address, **options))
        return opened[-1]

    yield show_one
    for watched in opened:
        watched.context.close()
    for server in servers.values():
        server.close()
    assert [trouble for watched in opened for trouble in watched.troubles] == []


class Live:
    """A sweep that seems to be running: the test writes its files and holds its lease."""

    def __init__(self, storage: Path) -> None:
        self.run = Folder(str(storage / "reviews"))
        self.folder = self.run / FINGERPRINT
        self.record, self.trials = plan(trials=24, points=20)
        moved(self.record, self.trials, time.time() - 30)
        self.record.seconds = 0
        write_start(self.run, COMMAND)
        self.record.save(self.folder)
        for trial in self.trials[:16]:
            write_trial(self.folder, trial)
            write_log(self.folder, trial)
        self.running = self.trials[16].model_copy(update={"state": "running", "ended": None})
        self.running.curve = self.running.curve[:8]
        self.write(self.running)

    def write(self, trial: Trial) -> None:
        last: Point = trial.curve[-1]
        trial.step, trial.seconds = int(last["step"]), last["seconds"]
        trial.metrics = {name: last[name] for name in ("loss", "accuracy")}
        write_trial(self.folder, trial)

    @property
    def best(self) -> Trial:
        whole = [trial for trial in self.trials[:16] if trial.state == "finished"]
        return min(whole, key=lambda trial: trial.metrics["loss"])

    def validate(self, loss: float) -> None:
        """Add one validation to the running trial."""
        last = self.running.curve[-1]
        point = {"step": last["step"] + 10, "seconds": last["seconds"] + 2, "loss": loss}
        self.running.curve = [*self.running.curve, {**point, "accuracy": 0.9}]
        self.write(self.running)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(tmp_path)
    with lease.hold(made.run, "reviews"):
        yield made


def rows(page: Page) -> list[str]:
    return page.locator("#table tr[data-number]").evaluate_all(
        "rows => rows.map(row => row.dataset.number)"
    )


def column(page: Page, place: int) -> list[str]:
    return page.locator(f"#table tr[data-number] td:nth-child({place})").all_inner_texts()


INKED = """(selector) => [...document.querySelectorAll(selector)].map((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
    return count;
}).reduce((a, b) => a + b, 0)"""


def inked(page: Page, chart: str) -> int:
    """The number of painted pixels on the canvases of a chart."""
    return int(page.evaluate(INKED, f"{chart} canvas"))


def base(page: Page, chart: str) -> int:
    """The number of painted pixels on the canvas with the marks of all trials."""
    return int(page.evaluate(INKED, f"{chart} canvas:first-of-type"))


def overlay(page: Page, chart: str) -> int:
    """The number of painted pixels on the canvas of highlighted trials."""
    return int(page.evaluate(INKED, f"{chart} canvas:last-of-type"))


def until(condition: Callable[[], Any], seconds: float = 5.0) -> float:
    """Wait until a condition holds; returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.03)
    return time.monotonic() - started


def ready(page: Page) -> None:
    page.wait_for_selector("#table tr[data-number]")
    page.locator(
        "#curves"
    ).scroll_into_view_if_needed()  # charts outside the viewport are not drawn
    page.wait_for_selector("#curves canvas.painted")
    until(lambda: page.evaluate("document.querySelector('#curves canvas')?.width > 300"))
    until(lambda: inked(page, "#curves") > 200)


def test_a_live_sweep_is_followed(tmp_path: Path, live: Live, show: Show) -> None:
    page = show(tmp_path).open()
    ready(page)
    assert page.inner_text("#state") == "running"
    assert page.inner_text("#eta") not in ("", "–")
    best = live.best
    assert page.input_value("#best-overrides").startswith("train.lr=")
    assert f"trial {best.number}" in page.inner_text("#best-note")
    row, took = f"#table tr[data-number='{live.running.number}']", []
    for loss in (0.21, 0.19, 0.17):
        live.validate(loss)
        took.append(until(lambda loss=loss: str(loss) in page.inner_text(row)))
    print(json.dumps({"seconds_to_screen": [round(t, 2) for t in took]}))
    assert sorted(took)[1] < 2.0  # two of three: other processes may delay one
    before = base(page, "#curves")
    live.validate(0.9)
    until(lambda: base(page, "#curves") != before, 2.0)


def test_trials_are_sorted_filtered_and_brushed(tmp_path: Path, live: Live, show: Show) -> None:
    page = show(tmp_path).open()
    ready(page)
    losses = [float(text) for text in column(page, 4) if text != "–"]
    assert losses == sorted(losses)
    page.click("#table th button[data-key=value]")
    losses = [float(text) for text in column(page, 4) if text != "–"]
    assert losses == sorted(losses, reverse=True)
    page.click("#table th button[data-key=number]")
    assert rows(page) == sorted(rows(page), key=int)
    page.fill("#filter", "lr<0.01 optimizer=muon")
    until(lambda: "of 17" in page.inner_text("#shown"))
    expected = [
        t.number
        for t in live.trials[:17]
        if t.overrides["train.lr"] < 0.01 and t.overrides["train.optimizer"] == "muon"
    ]
    assert [int(number) for number in rows(page)] == expected
    page.click("#clear")
    until(lambda: len(rows(page)) == 17)
    page.click("#states .chip.failed")
    until(lambda: set(column(page, 3)) == {"failed"})
    page.click("#clear")
    page.locator("#parallel").scroll_into_view_if_needed()
    until(lambda: inked(page, "#parallel") > 200)
    box = page.locator("#parallel .plane").bounding_box()
    x = box["x"] + box["width"] - 46  # the axis of the metric
    page.mouse.move(x, box["y"] + box["height"] - 20)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] - 90, steps=4)
    page.mouse.up()
    until(lambda: 0 < len(rows(page)) < 17)
    page.mouse.click(x, box["y"] + 60)
    until(lambda: len(rows(page)) == 17)


def test_a_trial_lights_up_in_all_charts(tmp_path: Path, live: Live, show: Show) -> None:
    charts = ["#curves", "#parallel", "#history", "#contour", "#timeline", "#slices"]
    page = show(tmp_path, viewport={"width": 1400, "height": 2600}).open()
    ready(page)
    for chart in charts:
        until(lambda chart=chart: inked(page, chart) > 50)
    page.mouse.move(5, 5)
    plain = {chart: overlay(page, chart) for chart in charts}
    page.hover("#table tr[data-number]:nth-child(6)")
    for chart in charts:
        until(lambda chart=chart: overlay(page, chart) > plain[chart])
    page.mouse.move(5, 5)
    until(lambda: page.locator("#table tr.hovered").count() == 0)
    box = page.locator("#history .plane").bounding_box()
    hits = [(box["x"] + x, box["y"] + y) for x in range(50, 400, 9) for y in range(20, 170, 12)]
    for x, y in hits:  # some of these points lie near a trial
        page.mouse.move(x, y)
        if not page.evaluate("document.querySelector('#tip').hidden"):
            break
    until(lambda: page.locator("#table tr.hovered").count() == 1)
    number = page.get_attribute("#table tr.hovered", "data-number")
    assert f"trial {number}" in page.inner_text("#tip")
    page.mouse.down()
    page.mouse.up()
    until(lambda: page.get_attribute("#table tr.selected", "data-number") == number)
    assert f"trial {number}" in page.inner_text("#selection")


def test_configurations_are_copied_and_compared(tmp_path: Path, live: Live, show: Show) -> None:
    page = show(tmp_path).open()
    ready(page)
    page.click("#copy-overrides")
    copied = page.evaluate("navigator.clipboard.readText()")
    best = live.best
    assert copied == actions.overrides_text(best.overrides)
    page.click("#copy-command")
    copied = page.evaluate("navigator.clipboard.readText()")
    values = actions.overrides_text(best.overrides)
    assert copied == f"orchestrator train job.yaml train.minutes=20 {values} tune=null"
    page.click("#table tr[data-number]:nth-child(2) input")
    page.click("#table tr[data-number]:nth-child(4) input")
    page.click("#compare")
    dialog = page.locator("#comparison[open]")
    until(lambda: dialog.locator("thead th").count() == 2)
    assert "train.lr" in dialog.inner_text()
    until(lambda: inked(page, "#comparison") > 100)
    page.keyboard.press("Escape")
    until(lambda: page.locator("#comparison[open]").count() == 0)


def test_a_failed_trial_shows_its_log_and_traceback(tmp_path: Path, live: Live, show: Show) -> None:
    failed = next(trial for trial in live.trials[:16] if trial.state == "failed")
    live.write(
        failed.model_copy(
            update={"number": 1, "reason": HOSTILE, "overrides": {"model.activation": HOSTILE}}
        )
    )
    page = show(tmp_path).open()
    ready(page)
    page.dblclick(f"#table tr[data-number='{failed.number}']")
    until(lambda: "DivergedError" in page.inner_text("#drawer .traceback"))
    assert f"trial {failed.number}" in page.inner_text("#drawer pre.log")
    assert failed.reason in page.inner_text("#drawer .reason")
    page.keyboard.press("Escape")
    page.dblclick("#table tr[data-number='1']")
    until(lambda: HOSTILE in page.inner_text("#drawer .reason"))
    assert page.locator("img[src=x]").count() == 0


def test_trials_and_sweep_are_stopped_and_resumed(
    tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "resumed: $@"\nexec sleep 4\n')
    (tmp_path / "job.yaml").write_text("name: reviews\ntask: text_classification\n")
    script.chmod(0o755)
    monkeypatch.setattr(actions.sys, "executable", str(script))
    monkeypatch.setattr(actions, "LOOK_SECONDS", 0.3)
    storage = tmp_path / "runs"
    live = Live(storage)
    with lease.hold(live.run, "reviews"):
        page = show(storage).open()
        ready(page)
        page.dblclick(f"#table tr[data-number='{live.running.number}']")
        page.click("#drawer .stop")
        page.click("#drawer .stop")  # confirm
        until(lambda: (live.folder / "requests").names() == ["stop-00016"])
        until(lambda: page.inner_text("#drawer .state") == "stopping")
        page.keyboard.press("Escape")
        page.click("#stop-sweep")
        page.click("#stop-sweep")
        until(lambda: "stop" in (live.folder / "requests").names())
        until(lambda: page.inner_text("#state") == "stopping")
        assert page.is_hidden("#resume")
    live.record.state = "stopped"
    live.record.save(live.folder)
    page.wait_for_selector("#resume:visible")
    page.click("#resume")
    until(lambda: "orchestrator run job.yaml" in page.inner_text("#asked"))
    assert str(tmp_path) in page.inner_text("#asked")
    page.click("#asked .close")
    assert not (storage / "reviews" / "resumed.log").exists()
    page.click("#resume")
    page.click("#asked .primary")
    log = storage / "reviews" / "resumed.log"
    until(lambda: log.exists() and "resumed: -P -m orchestrator run job.yaml" in log.read_text())
    until(lambda: "resumed.log" in page.inner_text("#toasts"))
    until(lambda: page.inner_text("#state") == "starting")


def test_all_runs_are_listed_and_lead_to_their_sweeps(tmp_path: Path, show: Show) -> None:
    for name, count in (("reviews", 12), ("summaries", 6)):
        record, trials = plan(trials=count)
        record.name = name
        moved(record, trials, time.time() - 100 * count)
        write_finished(Folder(str(tmp_path / name)), record, trials)
    watched = show(tmp_path, token="a token of some length")
    page = watched.open("/?token=a%20token%20of%20some%20length")
    page.wait_for_selector(".sweep")
    assert page.url == f"{watched.address}/"
    assert page.locator(".run h2").all_inner_texts() == [
        "summaries",
        "reviews",
    ]  # newest first
    assert "12 of 12" in page.locator(".sweep").last.inner_text()
    page.locator(".sweep").last.click()
    ready(page)
    assert page.inner_text("#state") == "finished" and page.is_hidden("#resume")
    page.click("#home")
    page.wait_for_selector(".run")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_theme(
    tmp_path: Path, live: Live, show: Show, scheme: str
) -> None:
    exploit(live.trials[:16])
    for trial in live.trials[:16]:
        trial.started += time.time()
        write_trial(live.folder, trial)
    phone = {"width": 390, "height": 844}
    watched = show(tmp_path, viewport=phone, has_touch=True, color_scheme=scheme)
    page = watched.open()
    ready(page)
    for path in (f"/#/reviews/{FINGERPRINT}", "/#/"):
        watched.open(path)
        page.wait_for_timeout(200)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= phone["width"], path
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background[4:-1].split(",")) > 3 * 128
    assert light == (scheme == "light")
    page.click("#theme")
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "dark"


def big_sweep(storage: Path) -> tuple[Folder, SweepRecord, list[Trial]]:
    record, trials = plan(trials=1_000, points=500, concurrent=16, stops=False)
    moved(record, trials, time.time() - 3_600)
    folder = write_finished(Folder(str(storage / "reviews")), record, trials)
    return folder, record, trials


FIRSTS = """
const firsts = window.firsts = {};
const wanted = {
    rows: '#table tr[data-number]',
    curves: '#curves canvas.rough, #curves canvas.painted',
    axes: '#curves canvas.painted',
};
new MutationObserver(() => {
    for (const [name, selector] of Object.entries(wanted)) {
        if (!(name in firsts) && document.querySelector(selector)) {
            firsts[name] = performance.now() / 1000;
        }
    }
}).observe(document, { subtree: true, childList: true, attributeFilter: ['class'] });
"""  # seconds since the page was opened


def test_a_thousand_trials_of_500_points_stay_usable(tmp_path: Path, show: Show) -> None:
    folder, _, trials = big_sweep(tmp_path)
    firsts = {}
    for attempt in ("cold", "warm"):  # the server has read none of the files, or all
        watched = show(tmp_path)
        watched.page.add_init_script(FIRSTS)
        page = watched.open()
        page.wait_for_selector("#curves canvas.painted")
        firsts[attempt] = page.evaluate("window.firsts")
        until(lambda page=page: "1000 of 1000" in page.inner_text("#trials-figure"), 20)
    answers: list[Any] = []
    page.on("response", lambda answer: answers.append(answer))
    page.click("#table th button[data-key=number]")
    write_trial(folder, trials[7].model_copy(update={"metrics": {"loss": 0.011}}))
    update = until(lambda: "0.011" in page.inner_text("#table tr[data-number='7']"))
    print(json.dumps({"seconds": firsts, "update": round(update, 2)}))
    # The better one: other processes may delay one.
    assert min(firsts["cold"]["curves"], firsts["warm"]["curves"]) < 2.0
    assert update < 2.0
    sizes = [len(answer.body()) for answer in answers if "since=" in answer.url]
    assert sizes and max(sizes) < 50_000
