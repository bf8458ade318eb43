"""What is exported answers in Hugging Face's libraries as the endpoint does, for every task."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from orchestrator.evaluate.card import USE
from orchestrator.evaluate.export import write
from orchestrator.infer.batch import to_device
from orchestrator.job.job import Job
from orchestrator.model.generate import GREEDY, generate
from orchestrator.model.hf import Outputs
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.processors.text import TextProcessor
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

CPU = torch.device("cpu")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 2, "max_seq_len": 24}
AS_BERT = {
    "norm": "layernorm",
    "norm_position": "post",
    "positions": "learned",
    "activation": "gelu",
    "bias": True,
    "embedding_norm": True,
    "token_types": 2,
}
AS_T5 = {
    "norm": "rmsnorm",
    "positions": "relative",
    "activation": "relu",
    "bias": False,
    "embedding_norm": False,
}
SENTENCE = "the cat sat on a mat and then it said that naïve dogs are not as good as 机器"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i : i + 3 + i % 4]) for i in range(len(WORDS) - 2)]
LONG = " ".join(WORDS * 3)  # more than max_seq_len
ROWS: dict[str, list[dict[str, Any]]] = {
    "language_modelling": [{"text": text} for text in TEXTS],
    "masked_language_modelling": [{"text": text} for text in TEXTS],
    "text_classification": [
        {"text": text, "label": ("good", "bad", "naïve")[i % 3]} for i, text in enumerate(TEXTS)
    ],
    "text_regression": [
        {"text": text, "number": str(1000 + 70 * i)} for i, text in enumerate(TEXTS)
    ],
    "translation": [{"source": text, "target": text[::-1]} for text in TEXTS],
    "question_answering": [
        {"context": text, "question": f"is it {text[:3]}", "answer": "the mat"} for text in TEXTS
    ],
    "extractive_question_answering": [
        {"context": text, "question": "who sat", "answer": text.split()[1], "answer_start": ""}
        for text in TEXTS
    ],
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def job_of(task: str, **model: Any) -> Job:
    return Job.model_validate(
        {
            "name": "a",
            "task": task,
            "data": {"source": "x"},
            "tokenizer": {"vocab_size": 300},
            "model": {**SIZES, **model} if "init_from" not in model else model,
        }
    )


def random_weights(model: Transformer) -> Transformer:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


class Exported:
    """A task with random weights, and what Hugging Face's libraries load of its export."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.task: Task[Any] = job.build_task()
        cleaned = [self.task.clean(dict(row)) for row in ROWS[job.task]]
        rows = [row for row in cleaned if row is not None]
        fitted = self.task.fit_processor(rows)
        self.processor = self.task.load_processor(fitted.to_bytes())
        sizes = self.processor.vocab_size, self.processor.num_outputs
        self.model = random_weights(self.task.build_model(*sizes))
        auto = write(job, self.processor, self.model, ["# a", USE, ""], Folder(str(folder)))
        self.theirs, report = getattr(transformers, auto).from_pretrained(
            folder, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        self.theirs.eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def answers(self, **row: Any) -> dict[str, Any]:
        """What the endpoint says of one row."""
        nothing = dict.fromkeys(self.task.columns) | dict.fromkeys(self.task.optional, "")
        cleaned = self.task.clean({**nothing, **row})
        assert cleaned is not None
        batch = to_device(self.task.encode([cleaned], self.processor), CPU)
        found = self.task.predict(self.model, batch, self.processor)
        found |= self.task.answer(self.model, batch, self.processor)
        return self.task.reply(found, 0, self.processor)

    def card(self, **given: str) -> dict[str, Any]:
        """What the card's Python comes to."""
        code = re.search(r"```python\n(.*?)```", (self.folder / "README.md").read_text(), re.S)
        assert code is not None
        names: dict[str, Any] = dict(given)
        with torch.no_grad():
            exec(code[1].replace("PATH", str(self.folder)), names)
        return names


@pytest.mark.parametrize("style", [{}, AS_BERT], ids=["EuroBERT", "BERT"])
@pytest.mark.parametrize("text", ["the cat sat", "[SEP] <|endoftext|> it said", LONG])
def test_classification(style: dict[str, Any], text: str, tmp_path: Path) -> None:
    exported = Exported(job_of("text_classification", **style), tmp_path)
    expected = exported.answers(text=text)
    found = exported.card(text=text)
    assert found["label"] == expected["label"]
    labels = exported.theirs.config.id2label
    probabilities = {labels[i]: float(p) for i, p in enumerate(found["probabilities"])}
    assert probabilities == pytest.approx(expected["probabilities"], abs=1e-4)


@pytest.mark.parametrize("style", [{}, AS_BERT], ids=["EuroBERT", "BERT"])
@pytest.mark.parametrize("text", ["the cat sat", LONG])
def test_regression_is_in_the_data_s_units(
    style: dict[str, Any], text: str, tmp_path: Path
) -> None:
    exported = Exported(job_of("text_regression", **style), tmp_path)
    expected = exported.answers(text=text)["number"]
    assert exported.card(text=text)["number"] == pytest.approx(expected, rel=1e-5)
    config = exported.theirs.config
    assert (config.problem_type, config.num_labels) == ("regression", 1)


def test_a_regression_begins_another_in_its_own_units(tmp_path: Path) -> None:
    exported = Exported(job_of("text_regression"), tmp_path)
    task = job_of("text_regression", init_from=str(tmp_path)).build_task()
    processor = task.fit_processor(
        [{"text": text, "number": str(i)} for i, text in enumerate(TEXTS)]
    )
    mine = task.build_model(processor.vocab_size, 1).eval()
    assert pretrained.load(mine, Folder(str(tmp_path)), Outputs.of(task, processor)) == []
    row = task.clean({"text": "the cat sat", "number": None})
    batch = to_device(task.encode([row or {}], processor), CPU)
    with torch.no_grad():
        found = task.reply(task.predict(mine, batch, processor), 0, processor)["number"]
    expected = exported.answers(text="the cat sat")["number"]
    assert found == pytest.approx(expected, rel=1e-4) and abs(expected) > 100


def test_language_modelling(tmp_path: Path) -> None:
    exported = Exported(job_of("language_modelling"), tmp_path)
    processor = exported.processor
    prompt = "the cat <|endoftext|>"
    tokens = [processor.end_token, *processor.encode(prompt)]
    assert exported.tokenizer(prompt)["input_ids"] == tokens
    written = list(generate(exported.model, tokens, 24 - len(tokens), GREEDY, processor.end_token))
    found = exported.card(text=prompt)
    assert found["generated"] == processor.decode([*tokens, *written])
    inputs = torch.tensor([tokens])
    with torch.no_grad():
        expected = exported.model(inputs)
        torch.testing.assert_close(exported.theirs(inputs).logits, expected, **TOLERANCE)


def test_an_exported_language_model_begins_another(tmp_path: Path) -> None:
    exported = Exported(job_of("language_modelling"), tmp_path)
    task = job_of("language_modelling", init_from=str(tmp_path)).build_task()
    processor = task.fit_processor([])
    rows = [{"text": LONG}, {"text": "the cat"}]
    ours, again = (exported.task.encode(rows, exported.processor), task.encode(rows, processor))
    assert {k: v.tolist() for k, v in ours.items()} == {k: v.tolist() for k, v in again.items()}


@pytest.mark.parametrize("style", [{}, AS_BERT], ids=["EuroBERT", "BERT"])
def test_masked_language_modelling(style: dict[str, Any], tmp_path: Path) -> None:
    exported = Exported(job_of("masked_language_modelling", **style), tmp_path)
    processor = exported.processor
    arrays = exported.task.encode([{"text": "the cat sat"}], processor)
    tokens = arrays["tokens"][0, : arrays["tokens_length"][0]].tolist()
    assert exported.tokenizer("the cat sat")["input_ids"] == tokens
    masked = exported.tokenizer("the <|mask|> sat", return_tensors="pt")
    assert (masked["input_ids"] == processor.mask_token).sum() == 1
    expected = exported.model(masked["input_ids"])
    torch.testing.assert_close(exported.theirs(**masked).logits, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "style", [{}, AS_T5, {"norm_position": "post"}], ids=["mBART", "T5", "BART"]
)
@pytest.mark.parametrize("text", ["the cat sat", "and then it said that naïve dogs", LONG])
def test_translation(style: dict[str, Any], text: str, tmp_path: Path) -> None:
    exported = Exported(job_of("translation", **style), tmp_path)
    expected = exported.answers(source=text)["target"]
    assert expected and exported.card(text=text)["generated"] == expected


@pytest.mark.parametrize("context", ["the cat sat on a mat", "", LONG])
def test_question_answering(context: str, tmp_path: Path) -> None:
    exported = Exported(job_of("question_answering"), tmp_path)
    expected = exported.answers(context=context, question="who sat")["answer"]
    found = exported.card(context=context, question="who sat")
    assert expected and found["answer"] == expected


@pytest.mark.parametrize("style", [{}, AS_BERT], ids=["EuroBERT", "BERT"])
@pytest.mark.parametrize("context", ["the cat sat on a mat", "it said that naïve dogs", LONG])
def test_extractive_question_answering(style: dict[str, Any], context: str, tmp_path: Path) -> None:
    exported = Exported(job_of("extractive_question_answering", **style), tmp_path)
    expected = exported.answers(context=context, question="who sat")["answer"]
    found = exported.card(context=context, question="who sat")
    assert found["answer"].strip(" \n\t�") == expected
    config = json.loads((tmp_path / "config.json").read_text())
    if style:
        assert config["architectures"] == ["BertForQuestionAnswering"]
    else:
        assert config["id2label"] == {"0": "start", "1": "end"}
    task = job_of("extractive_question_answering", init_from=str(tmp_path)).build_task()
    processor = task.fit_processor([])
    mine = task.build_model(processor.vocab_size, 1)
    assert pretrained.load(mine, Folder(str(tmp_path)), Outputs.of(task, processor)) == []


def test_a_foreign_language_model_goes_out_and_in_again(tmp_path: Path) -> None:
    """Its texts begin with <s>, behind the end of another; that stands there once each time."""
    begin, again = tmp_path / "begin", tmp_path / "again"
    words = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz.", "▁t", "at"]
    tokenizer = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [("▁", "t"), ("a", "t")], unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens(words[:3])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(begin)
    tokenizer.save(str(begin / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (begin / "tokenizer_config.json").write_text(json.dumps(settings))

    exported = Exported(job_of("language_modelling", init_from=str(begin)), again)

    plain = exported.processor.encode_plain_batch(["the cat"])[0]
    assert exported.tokenizer("the cat")["input_ids"] == [2, 1, *plain]
    assert exported.tokenizer.special_tokens_map == {**settings, "pad_token": "</s>"}
    task = job_of("language_modelling", init_from=str(again)).build_task()
    processor = task.fit_processor([])
    rows = [{"text": LONG}, {"text": "the cat"}]
    ours, theirs = exported.task.encode(rows, exported.processor), task.encode(rows, processor)
    assert ours["tokens"].tolist() == theirs["tokens"].tolist()


def test_a_foreign_tokenizer_keeps_its_special_tokens(tmp_path: Path) -> None:
    begin, again = tmp_path / "begin", tmp_path / "again"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "on"]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(begin)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    transformers.BertForMaskedLM(config).save_pretrained(begin)
    exported = Exported(job_of("text_classification", init_from=str(begin)), again)
    assert exported.tokenizer.special_tokens_map == {
        **tokenizer.special_tokens_map,
        "eos_token": "[SEP]",
    }
    assert exported.theirs.config.pad_token_id == 0
    text = "the cats [SEP] sat on " * 5
    expected = exported.answers(text=text)
    found = exported.card(text=text.strip())
    assert np.allclose(
        found["probabilities"].tolist(), list(expected["probabilities"].values()), atol=1e-4
    )
    ids = found["tokenizer"](text.strip(), truncation=True)["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (2, 3, 16)
    text_processor = exported.processor.text
    assert isinstance(text_processor, TextProcessor) and text_processor.special["pad_token"]
