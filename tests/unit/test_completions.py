"""Completing texts with a tiny random model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StageError, UserError
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.snapshot import Snapshot, pack
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.serve.completions import CompletionEngine, StoppedText
from orchestrator.serve.protocol import CompletionRequest, CompletionResponse
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder

CONTEXT = 32
TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on\n"
JOB = Job.model_validate(
    {
        "name": "tiny",
        "task": "language_modelling",
        "data": {"source": "python-stdlib"},
        "tokenizer": {"vocab_size": 300},
        "model": {
            "num_layers": 1,
            "d_model": 16,
            "num_heads": 2,
            "max_seq_len": CONTEXT,
            "tie_embeddings": False,
        },
        "serve": {"max_tokens": 6},
    }
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedData, Training]:
    root = Folder(str(tmp_path_factory.mktemp("run")))
    processor = TextProcessor.fit([TEXT] * 20, TokenizerConfig(vocab_size=300))
    (root / "prepare").write(processor.file_name, processor.to_bytes())
    prepared = PreparedData(
        folder=root / "prepare",
        seconds=0,
        summary="",
        processor=processor.file_name,
        splits={},
        documents={},
        source_bytes=0,
    ).commit()

    torch.manual_seed(1)
    task = JOB.build_task()
    model = task.build_model(processor.vocab_size, 1)
    checkpoints = Checkpoints(root / "train", task.metric)
    checkpoints.save(
        Snapshot(
            step=1,
            total_steps=1,
            model=pack(model.state_dict()),
            optimizer=pack({}),
            metrics={"loss": 1.0},
            history=[],
            precision="fp32",
            notices=[],
            samples="",
        )
    )
    checkpoints.finish()
    training = Training(
        folder=root / "train",
        seconds=0,
        summary="",
        best_checkpoint="step-00000001",
        steps=1,
        metrics={"loss": 1.0},
        history=[],
        precision="fp32",
    ).commit()
    return prepared, training


@pytest.fixture(scope="module")
def engine(artifacts: tuple[PreparedData, Training]) -> CompletionEngine:
    prepared, training = artifacts
    trained = TrainedModel.load(JOB.build_task(), prepared, training.checkpoint())
    return CompletionEngine(JOB, trained)


def complete(
    engine: CompletionEngine, prompt: str = "the dog", **fields: Any
) -> CompletionResponse:
    return engine.answer(CompletionRequest(prompt=prompt, **fields))


def texts(response: CompletionResponse) -> list[str]:
    return [choice.text for choice in response.choices]


# Counting


def test_usage_counts_the_tokens_of_the_prompt_and_of_every_choice(
    engine: CompletionEngine,
) -> None:
    one = complete(engine, max_tokens=5, temperature=0)
    three = complete(engine, max_tokens=5, temperature=0, n=3)
    assert one.choices[0].finish_reason == "length"
    assert one.usage.completion_tokens == 5
    assert three.usage.completion_tokens == 15
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    for usage in (one.usage, three.usage):
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_longer_prompt_counts_more_tokens(engine: CompletionEngine) -> None:
    counts = [complete(engine, "a b " * i).usage.prompt_tokens for i in range(4)]
    assert counts == sorted(set(counts))


def test_without_max_tokens_the_jobs_own_number_is_generated(engine: CompletionEngine) -> None:
    response = complete(engine, temperature=0)
    assert response.usage.completion_tokens == JOB.serve.max_tokens


def test_without_max_tokens_a_long_prompt_gets_what_is_left_of_the_context(
    engine: CompletionEngine,
) -> None:
    prompt = "?" * (CONTEXT - 4)
    usage = complete(engine, prompt, temperature=0).usage
    assert usage.total_tokens == CONTEXT
    assert 0 < usage.completion_tokens < JOB.serve.max_tokens


def test_an_empty_prompt_begins_a_document(engine: CompletionEngine) -> None:
    response = complete(engine, "", max_tokens=3, seed=0)
    assert response.usage.completion_tokens == 3
    assert response.usage.prompt_tokens > 0


# Choices and seeds


def test_a_seed_gives_the_same_texts_again(engine: CompletionEngine) -> None:
    first = texts(complete(engine, seed=7, n=3, max_tokens=10))
    complete(engine, seed=8)
    assert texts(complete(engine, seed=7, n=3, max_tokens=10)) == first


def test_choices_differ_from_each_other_and_are_numbered(engine: CompletionEngine) -> None:
    response = complete(engine, seed=7, n=8, max_tokens=10)
    assert len(set(texts(response))) == 8
    assert [choice.index for choice in response.choices] == list(range(8))


def test_without_a_seed_texts_differ(engine: CompletionEngine) -> None:
    found = {texts(complete(engine, max_tokens=10))[0] for _ in range(3)}
    assert len(found) == 3


def test_the_largest_seed_has_room_for_all_choices(engine: CompletionEngine) -> None:
    assert len(complete(engine, seed=2**63 - 1, n=8, max_tokens=2).choices) == 8


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}])
def test_greedy_settings_need_no_seed(engine: CompletionEngine, settings: dict[str, Any]) -> None:
    greedy = texts(complete(engine, temperature=0, max_tokens=10))
    assert texts(complete(engine, max_tokens=10, **settings)) == greedy


@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-40, 1e-9, 2.0])
def test_every_accepted_temperature_gives_a_text(
    engine: CompletionEngine, temperature: float
) -> None:
    assert complete(engine, temperature=temperature, max_tokens=3).usage.completion_tokens > 0


# Stops and echo


def test_a_stop_text_and_what_follows_it_are_cut(engine: CompletionEngine) -> None:
    whole = texts(complete(engine, seed=3, max_tokens=20))[0]
    stop = whole[8:10]
    response = complete(engine, seed=3, max_tokens=20, stop=stop)
    assert texts(response) == [whole[: whole.index(stop)]]
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.completion_tokens < 20


def test_the_stop_text_that_comes_first_counts(engine: CompletionEngine) -> None:
    whole = texts(complete(engine, seed=3, max_tokens=20))[0]
    early, late = whole[4:6], whole[-2:]
    response = complete(engine, seed=3, max_tokens=20, stop=[late, early, "never in it"])
    assert texts(response) == [whole[: min(whole.index(early), whole.index(late))]]


def test_a_stop_text_that_never_comes_changes_nothing(engine: CompletionEngine) -> None:
    whole = complete(engine, seed=3, max_tokens=20)
    stopped = complete(engine, seed=3, max_tokens=20, stop=["never in it", "\ud800"])
    assert texts(stopped) == texts(whole)
    assert stopped.choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stop_text_in_the_prompt_stops_nothing(engine: CompletionEngine) -> None:
    response = complete(engine, "never", temperature=0, max_tokens=4, stop="never", echo=True)
    assert response.usage.completion_tokens == 4


def test_echo_puts_the_prompt_before_the_text(engine: CompletionEngine) -> None:
    plain = texts(complete(engine, "ä dog", seed=3, n=2))
    echoed = texts(complete(engine, "ä dog", seed=3, n=2, echo=True))
    assert echoed == ["ä dog" + text for text in plain]


def test_the_end_token_in_a_prompt_is_plain_text(engine: CompletionEngine) -> None:
    usage = complete(engine, "<|endoftext|>").usage
    assert usage.prompt_tokens > complete(engine, "").usage.prompt_tokens + 1


# Refusals


def test_more_tokens_than_the_context_holds_are_refused(engine: CompletionEngine) -> None:
    room = CONTEXT - complete(engine, max_tokens=1).usage.prompt_tokens
    complete(engine, max_tokens=room)
    for too_many in (room + 1, 1_000_000):
        with pytest.raises(UserError) as caught:
            complete(engine, max_tokens=too_many)
        assert all(number in str(caught.value) for number in (str(too_many), str(CONTEXT)))


@pytest.mark.parametrize("max_tokens", [None, 1])
def test_a_prompt_beyond_the_context_is_refused(
    engine: CompletionEngine, max_tokens: int | None
) -> None:
    for length in (CONTEXT, 100_000):
        with pytest.raises(UserError, match=f"context of {CONTEXT}"):
            complete(engine, "?" * length, max_tokens=max_tokens)


def test_another_model_is_refused_by_name(engine: CompletionEngine) -> None:
    assert complete(engine, model="tiny").model == "tiny"
    with pytest.raises(UserError, match=r"gpt-9.*tiny"):
        complete(engine, model="gpt-9")


def test_every_answer_has_its_own_id(engine: CompletionEngine) -> None:
    assert complete(engine).id != complete(engine).id


def test_a_checkpoint_that_is_not_the_one_that_was_saved_is_not_served(
    artifacts: tuple[PreparedData, Training], tmp_path: Path
) -> None:
    prepared, training = artifacts
    source = training.folder / training.best_checkpoint
    copy = Folder(str(tmp_path)) / training.best_checkpoint
    for name in source.names():
        copy.write(name, source.read(name))
    weights = bytearray(source.read("model.safetensors"))
    weights[-1] ^= 1
    copy.write("model.safetensors", bytes(weights))
    moved = training.model_copy(update={"folder": Folder(str(tmp_path))})
    with pytest.raises(StageError, match=r"model\.safetensors"):
        TrainedModel.load(JOB.build_task(), prepared, moved.checkpoint())


PROCESSOR = TextProcessor.fit([TEXT] * 20, TokenizerConfig(vocab_size=300))


@given(
    st.text("the dogé", max_size=40),
    st.lists(st.text("the dogé", min_size=1, max_size=5), max_size=4),
    st.data(),
)
def test_a_text_ends_before_the_first_stop_however_it_is_cut_into_tokens(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    tokens = []
    while text:  # pieces, each by itself, so that stop texts lie across tokens
        length = data.draw(st.integers(1, len(text)))
        tokens += PROCESSOR.encode(text[:length])
        text = text[length:]
    whole, found = PROCESSOR.decode(tokens), StoppedText(PROCESSOR, stops)
    if not any(found.add(token) for token in tokens):
        found.end()
    assert whole.startswith(found.text)
    assert not any(stop in found.text for stop in stops)
    assert found.stopped == any(stop in whole for stop in stops)
    if found.stopped:
        assert any(whole.startswith(stop, len(found.text)) for stop in stops)
    else:
        assert found.text == whole
