"""Tokenizers from elsewhere in every task: their own tokens stand where they belong, and bytes are
those of the text."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from orchestrator.infer.batch import to_device
from orchestrator.job.job import Job
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks.task import Task

CPU = torch.device("cpu")
TEXTS = ["The cats sat.", "a naïve  cat 🙂", "cats, cats"]


def bert() -> TextProcessor:
    words = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        "[MASK]",
        "the",
        "cat",
        "##s",
        "sat",
        "a",
        ".",
        ",",
    ]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return TextProcessor(tokenizer, "[SEP]")


def sentencepiece(prefix: bool = True) -> TextProcessor:
    """As Llama 2's, with <s> before a text, or as T5's, with </s> behind it."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyzT.,", "at", "▁c"]
    vocab = {word: i for i, word in enumerate(words)}
    model = models.BPE(vocab, [("a", "t"), ("▁", "c")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(words[:3])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A" if prefix else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return TextProcessor(tokenizer, "</s>")


def task_of(name: str, length: int = 16) -> Task[Any]:
    model = {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": length}
    settings = {"name": "a", "task": name, "data": {"source": "x"}, "model": model}
    return Job.model_validate(settings).build_task()


def text_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("processor", [sentencepiece(), sentencepiece(prefix=False)])
def test_a_stream_of_documents_holds_their_bytes_and_one_end_each(processor: TextProcessor) -> None:
    task = task_of("language_modelling", length=2)
    texts = [*TEXTS, "x" * 10]  # of which the tail is perhaps dropped
    arrays = task.encode([{"text": text} for text in texts], processor)
    ends = (arrays["tokens"][:, 1:] == processor.end_token).sum()
    assert ends in (len(TEXTS), len(texts))
    starts = 1 in processor.prefix
    assert (arrays["tokens"] == 1).any() == starts
    dropped = text_bytes(texts) - int(arrays["bytes"].sum())
    # The first token is no target, and one at the end may be left over.
    assert 0 <= dropped <= (0 if starts else 1) + 1


@pytest.mark.parametrize("length", [4, 6, 16])
def test_masked_pieces_are_whole_sequences_and_hold_all_bytes(length: int) -> None:
    task, processor = task_of("masked_language_modelling", length), bert()
    arrays = task.encode([{"text": text} for text in TEXTS], processor)
    rows = zip(arrays["tokens"].tolist(), arrays["tokens_length"], strict=True)
    for row, size in rows:
        assert row[0] == 1 and row[size - 1] == 2 and {1, 2}.isdisjoint(row[1 : size - 1])
    assert arrays["bytes"].sum() == text_bytes(TEXTS)


def test_what_stands_around_a_text_is_neither_hidden_nor_scored() -> None:
    task, processor = task_of("masked_language_modelling"), bert()
    batch = to_device(task.encode([{"text": text} for text in TEXTS] * 20, processor), CPU)
    hidden: list[torch.Tensor] = []

    class Watched(torch.nn.Module):
        vocab_size = processor.vocab_size

        def forward(self, shown_BT: Any, real_BT: Any, selected_BT: torch.Tensor) -> torch.Tensor:
            hidden.append(selected_BT)
            return torch.zeros(int(selected_BT.sum()), self.vocab_size)

    _, count = task.loss(Watched(), batch)
    assert (hidden[0].any(1)).all() and count == hidden[0].sum()
    tokens = batch["tokens"][:, : hidden[0].shape[1]]
    assert not set(tokens[hidden[0]].tolist()) & {0, 1, 2}
    found = task.predict(Watched(), batch, processor)
    scored = torch.stack(hidden[1:]).sum(0)
    assert (scored == ((tokens != 0) & (tokens != 1) & (tokens != 2))).all()
    assert found["tokens"].tolist() == scored.sum(1).tolist()


def test_a_target_that_is_cut_counts_the_bytes_of_what_is_left() -> None:
    task, processor = task_of("translation", length=6), sentencepiece(prefix=False)
    rows = [{"source": "a cat", "target": target} for target in ("cat", "cats sat and sat")]
    arrays = task.encode(rows, processor)
    assert arrays["target"][0, :7].tolist().count(processor.end_token) == 2
    assert arrays["target_length"].tolist()[1] == 7
    kept = processor.decode(arrays["target"][1, 1:6].tolist()).strip()
    assert arrays["target_bytes"].tolist() == [3, len(kept)]
    assert task.keep(rows)["target_text"].tolist() == ["cat", "cats sat and sat"]


def test_a_question_and_its_context_stand_between_one_pair_of_marks() -> None:
    task, processor = task_of("extractive_question_answering"), bert()
    row = {"context": "The cats sat.", "question": "a cat", "answer": ["sat"], "answer_start": []}
    cleaned = task.clean(row)
    assert cleaned is not None
    arrays = task.encode([cleaned], processor)
    assert arrays["tokens"][0].tolist()[:10] == [1, 9, 6, 2, 5, 6, 7, 8, 10, 2]
    assert (arrays["start"][0], arrays["end"][0]) == (7, 7)
    short = task_of("extractive_question_answering", length=8).encode([cleaned], processor)
    assert short["tokens"][0].tolist() == [1, 9, 6, 2, 5, 6, 7, 2] and short["start"][0] == -1


def test_a_generated_answer_has_one_end() -> None:
    task, processor = task_of("question_answering", length=24), sentencepiece(prefix=False)
    cleaned = task.clean({"context": "a cat", "question": "cat", "answer": "sat"})
    assert cleaned is not None
    arrays = task.encode([cleaned], processor)
    source = arrays["source"][0, : arrays["source_length"][0]]
    assert np.flatnonzero(source == 2).tolist()[-1] == len(source) - 1
    assert (source == 2).sum() == 2  # between the two, and behind them
    assert (arrays["target"] == 2).sum() == 2
