"""The playground in a real browser, on a real server. Skipped if Chromium is not installed."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from fastapi import FastAPI

from orchestrator.infer.generation import Ending, Generated, GenerationRequest, Listener, Token
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.api_keys import digest_of
from orchestrator.job.job import Job
from orchestrator.processors.text import TextProcessor
from orchestrator.serve.app import make_app
from orchestrator.serve.text_engine import TextEngine
from tests.unit import predicting
from tests.unit.predicting import app_for
from tests.unit.served import JOB, PLAIN, chat_processor, listening, tiny_engine

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

Page = Any  # playwright's; playwright may be missing
Show = Callable[..., Page]
HOSTILE = "<img src=x onerror=alert(1)>"
KEY = "sk-right"
PHONE = {"width": 360, "height": 740}
LONG = 8192  # tokens: more than are generated before the test presses Stop


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Show]:
    """Opens the page of an application. The test fails if a page had an error, a dialog, or a
    request to another host; answers of 4xx are no error."""
    troubles: list[str] = []

    with ExitStack() as opened:

        def show_one(app: FastAPI, path: str = "/", **options: Any) -> Page:
            url = opened.enter_context(listening(app))
            context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
            opened.callback(context.close)  # before its server
            page = context.new_page()

            def console(message: Any) -> None:
                if message.type in ("error", "warning") and "status of 4" not in message.text:
                    troubles.append(f"console: {message.text}")

            def request(asked: Any) -> None:
                if not asked.url.startswith(url):
                    troubles.append(f"request to {asked.url}")

            page.on("console", console)
            page.on("request", request)
            page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
            page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
            page.goto(f"{url}{path}")
            return page

        yield show_one
    assert troubles == []


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.03)


def long_engine() -> TextEngine:
    """A model with room for so many tokens that there is time to stop it."""
    section = JOB.model.model_copy(update={"max_seq_len": LONG})
    job: Job = JOB.model_copy(update={"model": section})
    task = job.build_task()
    torch.manual_seed(1)
    model = task.build_model(PLAIN.vocab_size, 1).eval()
    return TextEngine(job, TrainedModel(task, PLAIN, model))


class Handle:
    def __init__(self) -> None:
        self.ending: Ending = "stop"
        self.is_cancelled = threading.Event()

    def cancel(self, ending: Ending = "cancelled") -> None:
        self.ending = ending
        self.is_cancelled.set()


class Scripted:
    """A generator that answers every request with the same text, a token each `seconds`."""

    def __init__(self, processor: TextProcessor, text: str, seconds: float = 0.0) -> None:
        self.tokens = processor.encode_plain_batch([text])[0]
        self.seconds = seconds
        self.requests: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest, listener: Listener) -> Handle:
        handle = Handle()
        self.requests.append(request)

        def generate() -> None:
            for token in self.tokens:
                listener(Generated(tokens=(Token(token, 0.0),)))
                if handle.is_cancelled.wait(self.seconds):
                    break
            listener(Generated(ending=handle.ending))

        threading.Thread(target=generate).start()
        return handle

    def close(self) -> None:
        """There is no thread that stays."""


def scripted_chat(text: str, seconds: float = 0.0) -> tuple[FastAPI, Scripted]:
    processor = chat_processor()
    generator = Scripted(processor, text, seconds)
    return make_app(JOB.name, tiny_engine(processor, generator)), generator


def trouble(page: Page) -> str:
    page.wait_for_selector("#trouble:visible")
    text: str = page.inner_text("#trouble")
    assert len(text.splitlines()) == 1
    return text


# Text


def test_a_completion_is_the_apis_own(show: Show) -> None:
    engine = tiny_engine()
    page = show(make_app(JOB.name, engine))
    page.wait_for_selector("#completion:visible")
    assert page.inner_text("#model") == "tiny" and page.inner_text("#version") == "1"
    assert page.input_value("#prompt") == "The"  # serve.sample_prompt
    assert page.is_hidden("#modes") and page.is_hidden("#key-form")
    page.fill("#prompt", "the quick")
    page.fill("#max_tokens", "12")
    page.fill("#temperature", "0")
    page.click("#completion .go")
    page.wait_for_selector("#continue:visible")
    body = {"prompt": "the quick", "max_tokens": 12, "temperature": 0}
    expected = page.request.post(f"{page.url}v1/completions", data=body).json()
    assert page.text_content("#generated") == expected["choices"][0]["text"]
    assert page.text_content("#given") == "the quick"
    tokens = expected["usage"]["completion_tokens"]
    assert page.inner_text("#completion .status").startswith(f"{tokens} token")
    page.click("#request summary")
    assert '-d \'{"prompt":"the quick"' in page.inner_text("#request pre")


def test_a_completion_streams_and_can_be_stopped(show: Show) -> None:
    engine = long_engine()
    page = show(make_app(JOB.name, engine))
    page.wait_for_selector("#completion:visible")
    page.fill("#max_tokens", str(LONG - 10))
    page.fill("#temperature", "0")  # the random model then repeats itself, and does not end
    page.focus("#completion .go")
    page.keyboard.press("Enter")
    until(lambda: len(page.text_content("#generated")) > 20)
    first = page.text_content("#generated")
    until(lambda: len(page.text_content("#generated")) > len(first))
    assert page.text_content("#generated").startswith(first)
    assert page.evaluate("document.activeElement.className") == "danger stop"
    page.keyboard.press("Enter")
    page.wait_for_selector("#completion .go:visible")
    assert page.inner_text("#completion .status") == "stopped"
    assert page.evaluate("document.activeElement.className") == "primary go"
    until(lambda: engine.generator.running == 0)  # type: ignore[attr-defined]
    stopped = page.text_content("#generated").replace("\r", "\n")  # as fields write it
    page.click("#continue")
    assert page.input_value("#prompt") == f"The{stopped}"
    assert page.is_hidden("#trouble")


def test_settings_are_sent_and_wrong_ones_are_told_in_one_line(show: Show) -> None:
    app, generator = scripted_chat("a fox | jumps")
    page = show(app)
    page.wait_for_selector("#completion:visible")
    values = {"temperature": "0.5", "top_p": "0.9", "top_k": "7", "repetition_penalty": "1.25"}
    for name, value in {**values, "seed": "3", "max_tokens": "9", "stops": "|\n\\n"}.items():
        page.fill(f"#{name}", value)
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#continue:visible")
    sampling = generator.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.repetition_penalty, sampling.seed) == (1.25, 3)
    assert generator.requests[0].max_tokens == 9
    assert page.text_content("#generated") == "a fox "  # it ends before the stop text
    page.fill("#temperature", "3")
    page.click("#completion .go")
    assert trouble(page).startswith("Temperature: ")
    assert len(generator.requests) == 1
    page.fill("#temperature", "1")
    page.fill("#max_tokens", "1000")
    page.click("#completion .go")
    until(lambda: "more than the model's context of 64" in trouble(page))


def test_a_chat_remembers_what_was_said(show: Show) -> None:
    app, generator = scripted_chat("a dog")
    page = show(app)
    page.wait_for_selector("#completion:visible")
    page.press("#modes input[value=completion]", "ArrowRight")
    page.fill("#max_tokens", "5")
    page.fill("#system", "be")
    for count, text in enumerate(("the", "fox"), 1):
        page.fill("#message", text)
        page.press("#message", "Enter")
        until(lambda count=count: page.locator("#messages li").count() == 2 * count)
        page.wait_for_selector("#chat .go:visible")
    said = page.locator("#messages li").all_text_contents()
    assert said == ["Youthe", "Modela dog", "Youfox", "Modela dog"]
    prompt = chat_processor().tokenizer.decode(
        generator.requests[1].prompt, skip_special_tokens=False
    )
    turns = ["system\nbe", "user\nthe", "assistant\na dog", "user\nfox"]
    expected = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
    assert prompt == f"{expected}<|im_start|>assistant"  # what the template ends with
    page.fill("#message", "the lazy dog " * 60)
    page.press("#message", "Enter")
    assert "context of 64" in trouble(page)
    assert page.locator("#messages li").count() == 4  # the refused one is back in its field
    assert page.input_value("#message").startswith("the lazy dog")
    page.click("#clear")
    assert page.locator("#messages li").count() == 0


def test_a_stopped_answer_stays_in_the_conversation(show: Show) -> None:
    app, generator = scripted_chat("the dog sleeps on and on and on", seconds=0.2)
    page = show(app)
    page.wait_for_selector("#completion:visible")
    page.press("#modes input[value=completion]", "ArrowRight")
    page.fill("#max_tokens", "9")
    page.fill("#message", "the")
    page.press("#message", "Enter")
    until(lambda: "dog" in page.text_content("#messages li:last-child .text"))
    assert page.is_hidden("#clear")
    page.keyboard.press("Escape")
    page.wait_for_selector("#chat .go:visible")
    assert page.inner_text("#chat .status") == "stopped"
    stopped = page.text_content("#messages li:last-child .text")
    assert stopped and not stopped.endswith("on")
    page.fill("#message", "fox")
    page.press("#message", "Enter")
    until(lambda: len(generator.requests) == 2)
    prompt = chat_processor().decode(generator.requests[1].prompt)
    assert f"assistant\n{stopped}" in prompt
    page.click("#chat .stop")


def test_html_of_the_model_and_of_the_reader_stays_text(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = scripted_chat(HOSTILE)
    page = show(app)
    page.wait_for_selector("#completion:visible")
    page.fill("#prompt", HOSTILE)
    page.fill("#max_tokens", "9")
    page.click("#completion .go")
    page.wait_for_selector("#continue:visible")
    assert page.inner_text("#completion .answer") == HOSTILE * 2
    page.check("#modes input[value=chat]", force=True)
    page.fill("#message", "a")
    page.press("#message", "Enter")
    until(lambda: page.locator("#messages li").count() == 2)
    until(lambda: HOSTILE in page.inner_text("#messages"))
    rows = [{"text": "a good one", "label": HOSTILE}, {"text": "bad", "label": "no"}]
    monkeypatch.setitem(predicting.ROWS, "text_classification", rows)
    other = show(app_for("text_classification")[0])
    other.fill("#input-text", HOSTILE)
    other.click("#predict .go")
    until(lambda: HOSTILE in other.inner_text("#predict .bars"))
    assert page.locator("img[src=x]").count() == other.locator("img[src=x]").count() == 0


def test_a_stream_that_breaks_is_no_whole_answer(show: Show) -> None:
    page = show(make_app(JOB.name, tiny_engine()))
    page.wait_for_selector("#completion:visible")
    half = 'data: {"choices": [{"text": "half", "finish_reason": null}]}\n\n'
    page.route("**/v1/completions", lambda route: route.fulfill(body=half))
    page.click("#completion .go")
    assert "ended before the answer did" in trouble(page)
    assert page.text_content("#generated") == "half"
    page.unroute("**/v1/completions")
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(status=413, body="<h1>nginx: too large</h1>"),
    )
    page.click("#completion .go")
    until(lambda: trouble(page) == "the endpoint answered with status 413")


# Predictions


def test_a_text_is_classified(show: Show) -> None:
    page = show(app_for("text_classification")[0])
    page.get_by_role("textbox", name="text").fill("a good one")
    page.get_by_role("button", name="Classify").click()
    page.wait_for_selector("#predict .bars")
    body = {"inputs": [{"text": "a good one"}]}
    output = page.request.post(f"{page.url}v1/predict", data=body).json()["outputs"][0]
    assert page.inner_text("#predict .main") == output["label"]
    ranked = sorted(output["probabilities"].items(), key=lambda each: -each[1])
    labels = page.locator("#predict .bars li span:first-child").all_inner_texts()
    shares = page.locator("#predict .bars li span:last-child").all_inner_texts()
    assert labels == [label for label, _ in ranked]
    assert shares == [f"{100 * share:.1f} %" for _, share in ranked]
    widths = page.locator("#predict .bar i").evaluate_all("all => all.map(i => i.offsetWidth)")
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]


@pytest.mark.parametrize(
    ("task", "button", "row", "field"),
    [
        ("text_regression", "Estimate", {"text": "five stars"}, "number"),
        ("translation", "Translate", {"source": "the dog sleeps"}, "target"),
        ("question_answering", "Answer", {"question": "Who sleeps?"}, "answer"),
        (
            "extractive_question_answering",
            "Answer",
            {"context": predicting.CONTEXT, "question": "Who?"},
            "answer",
        ),
        ("masked_language_modelling", "Score", {"text": "a dog"}, "loss"),
    ],
)
def test_every_task_is_answered(
    show: Show, task: str, button: str, row: dict[str, str], field: str
) -> None:
    page = show(app_for(task)[0])
    for name, text in row.items():
        page.fill(f"#input-{name}", text)
    page.get_by_role("button", name=button).click()
    page.wait_for_selector("#predict .main")
    output = page.request.post(f"{page.url}v1/predict", data={"inputs": [row]}).json()["outputs"][0]
    shown = page.text_content("#predict .main")
    if isinstance(output[field], str):
        assert shown == (output[field] or "(empty)")
    else:
        assert float(shown) == pytest.approx(output[field], rel=1e-4)


def test_an_input_that_is_refused_or_cut_is_told(show: Show) -> None:
    page = show(app_for("text_classification")[0])
    page.fill("#input-text", "   ")
    page.click("#predict .go")
    assert trouble(page) == "inputs[0]: holds nothing"
    page.fill("#input-text", "a good one, " * 80)
    page.click("#predict .go")
    page.wait_for_selector("#predict .bars")
    assert "was cut" in page.inner_text("#predict .answer")
    assert page.is_hidden("#trouble")


# The key, the prefix, and the looks


def test_a_wrong_key_is_told_and_the_right_one_works(show: Show) -> None:
    page = show(app_for("text_classification", keys=[digest_of(KEY)])[0])
    page.wait_for_selector("#key-form:visible")
    assert page.is_hidden("#columns") and page.is_hidden("#trouble")
    assert page.evaluate("document.activeElement.id") == "key"
    for wrong, message in (("sk-wrong", "is not valid here"), ("sk-é", "a character that no key")):
        page.get_by_label("API key").fill(wrong)
        page.keyboard.press("Enter")
        until(lambda message=message: message in trouble(page))
        assert page.is_visible("#key-form")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#predict:visible")
    assert page.is_hidden("#key-form") and page.is_hidden("#trouble")
    page.fill("#input-text", "a good one")
    page.click("#predict .go")
    page.wait_for_selector("#predict .bars")
    assert KEY not in page.content() and "$KEY" in page.text_content("#request pre")
    page.reload()  # the tab keeps the key
    page.wait_for_selector("#predict:visible")
    assert page.evaluate("localStorage.length") == 0
    page.click("#forget")
    page.wait_for_selector("#key-form:visible")
    page.fill("#input-text", "a good one")
    page.click("#predict .go")
    assert "the API key is missing" in trouble(page)
    page.reload()
    page.wait_for_selector("#key-form:visible")


def test_below_a_prefix_the_page_asks_below_it(show: Show) -> None:
    app = app_for("translation")[0]
    outer = FastAPI()
    outer.mount("/models/b", app)
    page = show(outer, "/models/b")
    page.wait_for_selector("#predict:visible")
    page.fill("#input-source", "the dog")
    page.click("#predict .go")
    page.wait_for_selector("#predict .main")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_theme(show: Show, scheme: str) -> None:
    options = {"viewport": PHONE, "has_touch": True, "color_scheme": scheme}
    page = show(make_app(JOB.name, tiny_engine(chat_processor())), **options)
    page.wait_for_selector("#completion:visible")
    page.click("#settings summary")  # closed on a phone
    page.fill("#prompt", "abc" * 100)
    page.fill("#max_tokens", "1")
    page.click("#completion .go")
    page.wait_for_selector("#completion .go:visible")
    page.click("#request summary")
    wide = show(app_for("text_classification")[0], **options)
    wide.fill("#input-text", "a good one" + "x" * 200)
    wide.click("#predict .go")
    wide.wait_for_selector("#predict .bars")
    for each in (page, wide):
        assert each.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background[4:-1].split(",")) > 3 * 128
    assert light == (scheme == "light")


def test_every_control_has_a_name_and_is_reached_by_tab(show: Show) -> None:
    page = show(make_app(JOB.name, tiny_engine(chat_processor())))
    page.wait_for_selector("#completion:visible")
    controls = page.locator("button:visible, input:visible, textarea:visible, summary:visible")
    names = controls.evaluate_all(
        "all => all.map(e => (e.labels?.[0] ?? e).textContent.trim() || e.ariaLabel)"
    )
    assert all(names) and len(names) > 10
    reached = []
    page.keyboard.press("Tab")
    for _ in range(len(names) + 3):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
        page.keyboard.press("Tab")
    assert {"completion", "prompt", "temperature", "stops"} <= set(reached)
