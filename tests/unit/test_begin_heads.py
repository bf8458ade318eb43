"""Beginning with the head of another model: labels by name, old names, shorter texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from orchestrator.errors import UserError
from orchestrator.model.config import ModelConfig
from orchestrator.model.hf import Outputs
from orchestrator.model.transformer import HeadKind, Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.storage.folder import Folder

V, LENGTH = 61, 16
BERT = {
    "vocab_size": V,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": LENGTH,
}
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bert(folder: Path, name: str = "BertForSequenceClassification", **settings: Any) -> Any:
    """A model of Hugging Face's with random weights, saved."""
    model_class = getattr(transformers, name)
    if "labels" in settings:
        labels = settings.pop("labels")
        settings |= {"id2label": dict(enumerate(labels)), "num_labels": len(labels)}
        settings["label2id"] = {label: i for i, label in enumerate(labels)}
    model = model_class(model_class.config_class(**{**BERT, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def begun(
    folder: Path,
    labels: tuple[str, ...] | None,
    head: HeadKind = "label",
    count: int = 0,
    **model: Any,
) -> tuple[Transformer, list[str], list[str]]:
    """Our model, what of it is new, and what is told."""
    source = Folder(str(folder))
    config, rows = pretrained.read_config(source)
    config = ModelConfig.model_validate({**config.model_dump(), **model})
    mine = Transformer(config, rows, head, count or len(labels or ())).eval()
    outputs = Outputs(labels)
    told = pretrained.notices(mine, source, outputs)
    return mine, pretrained.load(mine, source, outputs), told


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(0, V, (3, length))


@pytest.mark.parametrize(
    ("theirs", "ours", "rows"),
    [
        (("pos", "neg"), ("neg", "pos"), [1, 0]),
        (("neg", "pos"), ("neg", "pos"), [0, 1]),
        (("c", "a", "b"), ("a", "b", "c"), [1, 2, 0]),
        ((" nai\u0308ve ", "b"), ("b", "naïve"), [1, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"), [0, 1, 2]),
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), [1, 0]),
    ],
)
def test_a_head_follows_the_names_of_its_labels(
    theirs: tuple[str, ...], ours: tuple[str, ...], rows: list[int], tmp_path: Path
) -> None:
    model = bert(tmp_path, labels=theirs)
    mine, new, told = begun(tmp_path, ours)
    inputs = tokens()
    with torch.no_grad():
        expected = model(input_ids=inputs).logits[:, rows]
        torch.testing.assert_close(mine(inputs), expected, **TOLERANCE)
    assert new == []
    assert len(told) == (rows != sorted(rows)) and all("another order" in line for line in told)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("pos", "neg"), ("good", "bad")),
        (("LABEL_0", "LABEL_1"), ("bad", "good")),
        (("LABEL_0", "LABEL_1"), ("1", "2")),
        (("a", "b", "c"), ("a", "b")),
        (("a", "b"), ("a", "b", "c")),
        (("a", "a"), ("a", "b")),
    ],
)
def test_a_head_for_other_labels_stays_new_and_that_is_told(
    theirs: tuple[str, ...], ours: tuple[str, ...], tmp_path: Path
) -> None:
    model = bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): label for i, label in enumerate(theirs)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if len(theirs) > 2:
        model = bert(tmp_path, labels=theirs)
    mine, new, (told,) = begun(tmp_path, ours)
    assert new == ["head.logits.weight", "head.logits.bias"]
    assert told.startswith(f"model.init_from has no head for this task (its labels are {theirs[0]}")
    assert told.endswith("head.logits start from random weights")
    assert torch.equal(mine.state_dict()["head.dense.weight"], model.bert.pooler.dense.weight)


def test_a_head_that_pools_otherwise_stays_new(tmp_path: Path) -> None:
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"), 0)
    settings = {**ids, "labels": ("a", "b"), "classifier_pooling": "late"}
    bert(tmp_path, "EuroBertForSequenceClassification", **settings)
    _, new, (told,) = begun(tmp_path, ("a", "b"))
    assert len(new) == 4 and "classifier_pooling = 'late' is not supported" in told
    bert(
        tmp_path, "EuroBertForSequenceClassification", **{**settings, "classifier_pooling": "mean"}
    )
    assert begun(tmp_path, ("a", "b"))[1:] == ([], [])


def test_a_head_of_its_own_architecture_that_is_missing_is_an_error(tmp_path: Path) -> None:
    for name, part, head in (
        ("BertForSequenceClassification", "classifier.weight", "label"),
        ("BertForMaskedLM", "cls.predictions.transform.dense.weight", "tokens"),
        ("BertForTokenClassification", "classifier.bias", "each_token"),
        ("BertForQuestionAnswering", "qa_outputs.weight", "each_token"),
    ):
        bert(folder := tmp_path / name, name)
        path = folder / "model.safetensors"
        weights = safetensors.torch.load_file(path)
        del weights[part]
        safetensors.torch.save_file(weights, path)
        labels = ("start", "end") if name.endswith("Answering") else None
        with pytest.raises(UserError, match=rf"model\.safetensors: {part} is missing"):
            begun(folder, labels, head, count=2)  # type: ignore[arg-type]


def test_another_task_s_head_is_told_and_left(tmp_path: Path) -> None:
    bert(tmp_path, "BertForMaskedLM")
    _, new, told = begun(tmp_path, ("a", "b"))
    assert len(new) == 4
    assert told[0].endswith("head.dense, head.logits start from random weights")
    assert "not used: cls.predictions." in told[1] and len(told) == 2


def test_spans_of_their_head_and_of_an_older_export_are_read(tmp_path: Path) -> None:
    model = bert(tmp_path / "qa", "BertForQuestionAnswering")
    inputs = tokens()
    with torch.no_grad():
        found = model(input_ids=inputs)
        expected = torch.stack([found.start_logits, found.end_logits], -1)
        mine, new, told = begun(tmp_path / "qa", ("start", "end"), "each_token")
        torch.testing.assert_close(mine(inputs), expected, **TOLERANCE)
    assert (new, told) == ([], [])
    bert(tmp_path / "token", "BertForTokenClassification", labels=("start", "end"))
    assert begun(tmp_path / "token", ("start", "end"), "each_token")[1] == []
    bert(tmp_path / "ner", "BertForTokenClassification", labels=("O", "NAME"))
    assert begun(tmp_path / "ner", ("start", "end"), "each_token")[1] == [
        "head.weight",
        "head.bias",
    ]


def renamed(folder: Path, change: dict[str, str]) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    for old, new in change.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(weights, path)


@pytest.mark.parametrize(
    "change",
    [
        {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"},
        {"bert.": ""},
        {"cls.predictions.bias": "cls.predictions.decoder.bias"},
    ],
)
def test_older_names_are_read(change: dict[str, str], tmp_path: Path) -> None:
    model = bert(tmp_path, "BertForMaskedLM")
    renamed(tmp_path, change)
    mine, new, told = begun(tmp_path, None, "tokens", 1)
    inputs = tokens()
    with torch.no_grad():
        torch.testing.assert_close(mine(inputs), model(input_ids=inputs).logits, **TOLERANCE)
    assert (new, told) == ([], [])


def test_a_tied_t5_whose_file_holds_the_head_too_gives_the_same_logits(tmp_path: Path) -> None:
    settings = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 3}
    model = bert(tmp_path, "T5ForConditionalGeneration", **settings)
    path = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    twins = {name: weights["shared.weight"].clone() for name in T5_TWINS}
    safetensors.torch.save_file(weights | twins, path)
    mine, new, told = begun(tmp_path, None, "tokens", 1)
    source, target = tokens(), tokens(5)
    with torch.no_grad():
        expected = model(input_ids=source, decoder_input_ids=target).logits
        torch.testing.assert_close(mine(target, source_BS=source), expected, **TOLERANCE)
    assert (new, told) == ([], [])


T5_TWINS = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "GPT2LMHeadModel", "BartForConditionalGeneration"]
)
def test_a_shorter_context_takes_the_first_positions(name: str, tmp_path: Path) -> None:
    settings = {"GPT2LMHeadModel": {"n_embd": 24, "n_head": 3, "n_layer": 1, "n_positions": LENGTH}}
    settings["BartForConditionalGeneration"] = {"d_model": 24} | {
        f"{stack}_{part}": value
        for stack in ("encoder", "decoder")
        for part, value in (("layers", 1), ("attention_heads", 3), ("ffn_dim", 40))
    }
    model = bert(tmp_path, name, **settings.get(name, {}))
    mine, new, told = begun(tmp_path, None, "tokens", 1, max_seq_len=10)
    inputs = tokens()
    source = {"source_BS": inputs} if name.startswith("Bart") else {}
    theirs = {"decoder_input_ids": inputs} if source else {}
    with torch.no_grad():
        expected = model(input_ids=inputs, **theirs).logits
        torch.testing.assert_close(mine(inputs, **source), expected, **TOLERANCE)
    assert (new, told, mine.config.max_seq_len) == ([], [], 10)


def test_a_table_of_positions_that_is_not_as_long_as_said_is_refused(tmp_path: Path) -> None:
    bert(tmp_path, "BertForMaskedLM")
    config = json.loads((tmp_path / "config.json").read_text())
    config["max_position_embeddings"] = LENGTH - 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"position_embeddings.weight has the shape \[16, 24\]"):
        begun(tmp_path, None, "tokens", 1)


def test_biases_that_a_config_promises_must_be_there(tmp_path: Path) -> None:
    settings = {**BERT, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 3}
    bert(tmp_path, "LlamaForCausalLM", **settings)
    path = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["model.layers.0.mlp.up_proj.bias"]
    safetensors.torch.save_file(weights, path)
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.up_proj\.bias is missing"):
        begun(tmp_path, None, "tokens", 1)
