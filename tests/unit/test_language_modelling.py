"""The language modelling task: documents to blocks, blocks to losses, losses to metrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.job.job import Job
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.tasks.language_modelling import LanguageModelling
from orchestrator.tasks.metrics import language_metrics

LENGTH = 6
documents = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8)


def job(**data: object) -> Job:
    return Job.model_validate(
        {
            "name": "toy",
            "task": "language_modelling",
            "data": {"source": "toy.txt", **data},
            "model": {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": LENGTH},
        }
    )


@pytest.fixture(scope="module")
def task() -> LanguageModelling:
    return job().build_task()


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    return TextProcessor.fit(["the cat and the hat"] * 9, TokenizerConfig(vocab_size=270))


def rows_of(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def stream_of(texts: list[str], processor: TextProcessor) -> list[int]:
    return [token for text in texts for token in [*processor.encode(text), processor.end_token]]


def joined(blocks: np.ndarray) -> list[int]:
    """The stream that overlapping blocks were cut from."""
    return [*blocks[0].tolist(), *blocks[1:, 1:].flatten().tolist()] if len(blocks) else []


@given(documents)
def test_blocks_cover_the_stream_and_drop_only_its_tail(
    task: LanguageModelling, processor: TextProcessor, texts: list[str]
) -> None:
    blocks = task.encode(rows_of(texts), processor)["tokens"]
    stream, found = stream_of(texts, processor), joined(blocks)
    assert blocks.shape[1:] == (LENGTH + 1,)
    assert found == stream[: len(found)]
    assert len(stream) - max(len(found), 1) < LENGTH


@given(documents)
def test_the_last_token_of_a_block_is_the_first_of_the_next(
    task: LanguageModelling, processor: TextProcessor, texts: list[str]
) -> None:
    blocks = task.encode(rows_of(texts), processor)["tokens"]
    np.testing.assert_array_equal(blocks[:-1, -1], blocks[1:, 0])


@pytest.mark.parametrize(
    ("tokens", "blocks"),
    [
        (LENGTH, 0),
        (LENGTH + 1, 1),
        (2 * LENGTH, 1),
        (2 * LENGTH + 1, 2),
        (3 * LENGTH, 2),
        (3 * LENGTH + 1, 3),
    ],
)
def test_a_block_begins_where_a_whole_one_fits(
    task: LanguageModelling, processor: TextProcessor, tokens: int, blocks: int
) -> None:
    text = "?" * (tokens - 1)  # one token each, and the end token
    assert len(task.encode(rows_of([text]), processor)["tokens"]) == blocks


def test_many_documents_are_one_stream_in_their_order(
    task: LanguageModelling, processor: TextProcessor
) -> None:
    texts = [f"{i} the cat" for i in range(200)]
    found = joined(task.encode(rows_of(texts), processor)["tokens"])
    assert found == stream_of(texts, processor)[: len(found)]


def test_no_documents_give_no_blocks_of_the_right_shape(
    task: LanguageModelling, processor: TextProcessor
) -> None:
    none, some = (task.encode(rows_of(t), processor)["tokens"] for t in ([], ["the cat"] * 9))
    assert none.shape == (0, LENGTH + 1)
    assert none.dtype == some.dtype


def test_the_largest_token_ids_fit_into_the_blocks(task: LanguageModelling) -> None:
    class Largest:
        end_token = 65_535
        dtype = np.uint16
        opening: tuple[int, ...] = ()

        def encode_with_bytes(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
            return [([65_534] * 10, [1] * 10) for _ in texts]

    blocks = task.encode(rows_of(["x"]), Largest())["tokens"]
    assert blocks.max() == 65_534
    assert joined(task.encode(rows_of(["x", "x"]), Largest())["tokens"])[10] == 65_535


def test_clean_composes_characters_and_keeps_the_rest(task: LanguageModelling) -> None:
    assert task.clean({"text": " e\u0301\n\tﬁ "}) == {"text": " \u00e9\n\tﬁ "}


@pytest.mark.parametrize("text", ["", " ", "\n\t\r ", "\u3000\u2003\u00a0"])
def test_clean_drops_blank_text(task: LanguageModelling, text: str) -> None:
    assert task.clean({"text": text}) is None


def test_a_processor_comes_back_from_its_bytes(
    task: LanguageModelling, processor: TextProcessor
) -> None:
    loaded = task.load_processor(processor.to_bytes())
    assert loaded.encode("the hat") == processor.encode("the hat")


class Favourite(torch.nn.Module):
    """Gives one token half of the probability and shares the rest among the others."""

    def __init__(self, token: int, vocab_size: int) -> None:
        super().__init__()
        chances = torch.full((vocab_size,), 0.5 / (vocab_size - 1))
        chances[token] = 0.5
        self.logits_V = chances.log()

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.logits_V.expand(*tokens_BT.shape, -1)


def test_predict_counts_the_nats_tokens_and_bytes_of_the_targets(
    task: LanguageModelling, processor: TextProcessor
) -> None:
    the, question, end = *processor.encode(" the"), *processor.encode("?"), processor.end_token
    tokens = torch.tensor([[question, the, end, the], [the, the, question, question]])
    batch = {"tokens": tokens.to(torch.uint16), "bytes": torch.tensor([8, 6])}
    found = task.predict(Favourite(the, 270), batch, processor)
    likely, unlikely = math.log(2), -math.log(0.5 / 269)
    np.testing.assert_allclose(
        found["nats"], [2 * likely + unlikely, likely + 2 * unlikely], rtol=1e-6
    )
    assert found["tokens"].tolist() == [3, 3]
    assert found["bytes"].tolist() == [8, 6]


def test_the_bytes_of_a_block_are_those_of_its_targets_text(
    task: LanguageModelling, processor: TextProcessor
) -> None:
    texts = ["the cat", "naïve 🙂 and the hat", "?" * 40]
    arrays = task.encode(rows_of(texts), processor)
    expected = processor.token_bytes[arrays["tokens"][:, 1:]].sum(1)
    assert arrays["bytes"].tolist() == expected.tolist() and expected.min() > 0


def test_the_loss_is_the_sum_over_the_targets_and_their_number(
    task: LanguageModelling, processor: TextProcessor
) -> None:
    torch.manual_seed(0)
    model = task.build_model(processor.vocab_size, 1)
    rows = task.encode(rows_of(["the cat and the hat"] * 9), processor)["tokens"]
    batch = {"tokens": torch.from_numpy(rows), "bytes": torch.zeros(len(rows))}
    with torch.no_grad():
        loss, count = task.loss(model, batch)
        predicted = task.predict(model, batch, processor)
    assert count == predicted["tokens"].sum() == rows[:, 1:].size
    assert float(loss) == pytest.approx(predicted["nats"].sum(), rel=1e-5)


def test_score_adds_up_all_rows_before_it_divides(task: LanguageModelling) -> None:
    predictions = {
        "nats": np.array([1.0, 5.0]),
        "tokens": np.array([1, 3]),
        "bytes": np.array([2, 10]),
    }
    assert task.score(predictions) == language_metrics(6.0, 4, 12)
    assert task.metric.name in task.score(predictions)


def test_the_metric_prefers_the_lower_loss(task: LanguageModelling) -> None:
    assert task.metric.better(1.0, 2.0)
    assert not task.metric.better(2.0, 1.0)
    assert not task.metric.better(1.0, 1.0)


def test_baselines_are_measured_on_the_targets_of_the_model(
    task: LanguageModelling, processor: TextProcessor
) -> None:
    rows = task.encode(rows_of(["the cat and the hat"] * 50), processor)
    found = task.baselines(rows, rows, processor)
    loss = [found[order]["loss"] for order in ("unigram", "bigram", "trigram")]
    assert loss == sorted(loss, reverse=True) and loss[2] < 0.5 * loss[0]
    text_bytes = rows["bytes"].sum()
    assert text_bytes == processor.token_bytes[rows["tokens"][:, 1:]].sum()
    for metrics in found.values():
        nats = metrics["loss"] * rows["tokens"][:, 1:].size
        assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes)
