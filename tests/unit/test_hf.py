"""Parity with Hugging Face: the same weights give the same logits, read and written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from orchestrator.errors import UserError
from orchestrator.model import hf
from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import HeadKind, Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.storage.folder import Folder

V, B, T = 61, 3, 9
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHead", {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16}),
    "gpt2 wide": (
        "GPT2LMHead",
        {"n_embd": 40, "n_layer": 1, "n_head": 5, "n_positions": 16, "n_inner": 48},
    ),
    "llama": (
        "LlamaForCausalLM",
        {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_position_embeddings": 16,
        },
    ),
    "llama grouped": (
        "LlamaForCausalLM",
        {
            "hidden_size": 36,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "arcee": (
        "ArceeForCausalLM",
        {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 16,
        },
    ),
}
BERT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
}
EURO = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "mask_token_id": 0}  # of V
BART = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def theirs(name: str, **settings: Any) -> Any:
    """A model of Hugging Face's with random weights, its norms and biases too."""
    model_class = getattr(transformers, {"GPT2LMHead": "GPT2LMHeadModel"}.get(name, name))
    config = model_class.config_class(**{"vocab_size": V, **settings})
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for key, buffer in model.named_buffers():
            if key == "final_logits_bias":
                buffer.normal_()
    return model


def ours(folder: Path, head: HeadKind = "tokens", num_outputs: int = 1) -> Transformer:
    source = Folder(str(folder))
    model = Transformer(*pretrained.read_config(source), head, num_outputs)
    assert pretrained.load(model, source) == []
    return model.eval()


def tokens(length: int = T) -> torch.Tensor:
    return torch.randint(0, V, (B, length))


def padding(side: str, length: int = T) -> torch.Tensor:
    real_BT = torch.ones(B, length, dtype=torch.bool)
    for row, count in enumerate((0, 2, 5)):
        if count and side != "none":
            real_BT[row, slice(0, count) if side == "left" else slice(-count, None)] = False
    return real_BT


@torch.no_grad()
def assert_same(model: Any, folder: Path, head: HeadKind, num_outputs: int = 1) -> None:
    """The model of theirs, and ours read from its folder: with padding on both sides, and without.

    Where a token is padding, what comes out is of no use, and is not compared.
    """
    mine = ours(folder, head, num_outputs)
    for side in ("none", "left", "right"):
        inputs_BT, real_BT = tokens(), padding(side)
        expected = model(input_ids=inputs_BT, attention_mask=real_BT.long()).logits
        found = mine(inputs_BT, None if side == "none" else real_BT)
        if head != "label":
            expected, found = expected[real_BT], found[real_BT]
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_give_the_same_logits(name: str, tmp_path: Path) -> None:
    class_name, settings = DECODERS[name]
    model = theirs(class_name, **settings)
    model.save_pretrained(tmp_path)

    assert_same(model, tmp_path, "tokens")


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "EuroBertForMaskedLM"])
def test_encoders_give_the_same_logits(class_name: str, tmp_path: Path) -> None:
    model = theirs(class_name, **BERT, **(EURO if "Euro" in class_name else {}))
    model.save_pretrained(tmp_path)

    assert_same(model, tmp_path, "tokens")


@pytest.mark.parametrize(
    ("class_name", "head"),
    [
        ("BertForSequenceClassification", "label"),
        ("EuroBertForSequenceClassification", "label"),
        ("BertForTokenClassification", "each_token"),
        ("EuroBertForTokenClassification", "each_token"),
    ],
)
def test_classifiers_give_the_same_logits(class_name: str, head: HeadKind, tmp_path: Path) -> None:
    euro = {**EURO, "classifier_pooling": "mean"} if "Euro" in class_name else {}
    model = theirs(class_name, **BERT, num_labels=4, **euro)
    model.save_pretrained(tmp_path)

    assert_same(model, tmp_path, head, num_outputs=4)


def test_segments_are_bert_s(tmp_path: Path) -> None:
    model = theirs("BertForMaskedLM", **BERT)
    model.save_pretrained(tmp_path)
    inputs_BT, types_BT = tokens(), torch.randint(0, 2, (B, T))

    with torch.no_grad():
        expected = model(input_ids=inputs_BT, token_type_ids=types_BT).logits
        found = ours(tmp_path)(inputs_BT, types_BT=types_BT)

    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_vit_gives_the_same_logits(qkv_bias: bool, tmp_path: Path) -> None:
    settings = {**BERT, "image_size": 12, "patch_size": 4, "num_channels": 1, "num_labels": 5}
    del settings["max_position_embeddings"]
    model = theirs("ViTForImageClassification", **settings, qkv_bias=qkv_bias)
    model.save_pretrained(tmp_path)
    images = torch.randn(B, 1, 12, 12)

    with torch.no_grad():
        expected = model(pixel_values=images).logits
        found = ours(tmp_path, "label", 5)(images)

    torch.testing.assert_close(found, expected, **TOLERANCE)


@torch.no_grad()
def assert_same_pairs(model: Any, folder: Path, side: str, source: int, target: int) -> None:
    """An encoder-decoder of theirs, and ours read from its folder, for so many tokens of each."""
    source_BS, target_BT, real_BS = tokens(source), tokens(target), padding(side, source)
    expected = model(
        input_ids=source_BS, attention_mask=real_BS.long(), decoder_input_ids=target_BT
    ).logits
    found = ours(folder)(target_BT, source_BS=source_BS, source_real_BS=real_BS)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "class_name", ["BartForConditionalGeneration", "MBartForConditionalGeneration"]
)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_encoder_decoders_give_the_same_logits(class_name: str, side: str, tmp_path: Path) -> None:
    model = theirs(class_name, **BART)
    model.save_pretrained(tmp_path)

    assert_same_pairs(model, tmp_path, side, 7, 5)


T5 = {"d_model": 24, "d_kv": 10, "d_ff": 40, "num_layers": 2, "num_heads": 3}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ],
    ids=["T5", "Flan-T5"],
)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_t5_gives_the_same_logits(settings: dict[str, Any], side: str, tmp_path: Path) -> None:
    model = theirs("T5ForConditionalGeneration", **T5, **settings)
    if settings:  # the public ones have a head of their own
        model.lm_head.weight = torch.nn.Parameter(torch.randn(V, 24))
        model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)

    assert_same_pairs(model, tmp_path, side, 150, 140)  # distances that share a bucket, too


AS_T5 = {
    "family": "encoder_decoder",
    "norm": "rmsnorm",
    "positions": "relative",
    "bias": False,
    "embedding_norm": False,
    "norm_eps": 1e-6,
}
OURS: dict[str, tuple[HeadKind, dict[str, Any]]] = {
    "decoder": ("tokens", {"family": "decoder", "num_kv_heads": 3}),
    "decoder swiglu": ("tokens", {"family": "decoder", "activation": "swiglu", "bias": True}),
    "decoder as gpt2": (
        "tokens",
        {"norm": "layernorm", "positions": "learned", "activation": "gelu_tanh", "bias": True},
    ),
    "encoder": ("tokens", {"family": "encoder"}),
    "encoder, label": ("label", {"family": "encoder"}),
    "encoder, each token": ("each_token", {"family": "encoder", "tie_embeddings": False}),
    "encoder_decoder": ("tokens", {"family": "encoder_decoder"}),
    "encoder_decoder as t5": ("tokens", {**AS_T5, "activation": "relu2", "num_decoder_layers": 1}),
    "encoder_decoder as t5, gated": (
        "tokens",
        {**AS_T5, "activation": "geglu_tanh", "head_dim": 6},
    ),
    "encoder_decoder, post": (
        "tokens",
        {"family": "encoder_decoder", "norm_position": "post", "num_decoder_layers": 1},
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_written_gives_the_same_logits_there(name: str, tmp_path: Path) -> None:
    head, settings = OURS[name]
    config = ModelConfig(num_layers=2, d_model=24, num_heads=6, max_seq_len=16, **settings)
    model = Transformer(config, V, head, num_outputs=4).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    pretrained.save(model, Folder(str(tmp_path)))
    class_name = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    auto = {
        "label": transformers.AutoModelForSequenceClassification,
        "each_token": transformers.AutoModelForTokenClassification,
        "tokens": {
            "decoder": transformers.AutoModelForCausalLM,
            "encoder": transformers.AutoModelForMaskedLM,
            "encoder_decoder": transformers.AutoModelForSeq2SeqLM,
        }[config.family],
    }[head]

    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)

    assert type(loaded).__name__ == class_name
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs_BT, source_BS, real_BS = tokens(), tokens(7), padding("right", 7)
    with torch.no_grad():
        if config.family == "encoder_decoder":
            expected = loaded(
                input_ids=source_BS, attention_mask=real_BS.long(), decoder_input_ids=inputs_BT
            ).logits
            found = model(inputs_BT, source_BS=source_BS, source_real_BS=real_BS)
        else:
            expected, found = loaded(input_ids=inputs_BT).logits, model(inputs_BT)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert pretrained.load(Transformer(config, V, head, 4), Folder(str(tmp_path))) == []


def test_a_body_saved_alone_is_read_and_the_head_stays_new(tmp_path: Path) -> None:
    model = theirs("BertForMaskedLM", **BERT)
    model.bert.save_pretrained(tmp_path)
    source = Folder(str(tmp_path))
    mine = Transformer(*pretrained.read_config(source), "label", num_outputs=3)
    before = mine.state_dict()["head.logits.weight"].clone()

    new = pretrained.load(mine, source)

    assert new == ["head.dense.weight", "head.dense.bias", "head.logits.weight", "head.logits.bias"]
    assert torch.equal(mine.state_dict()["head.logits.weight"], before)
    expected = model.bert.embeddings.word_embeddings.weight
    assert mine.tokens is not None and torch.equal(mine.tokens.weight, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type = 'mamba' is not supported; llama"),
        ({"hidden_act": "tanh"}, "hidden_act = 'tanh' is not supported"),
        ({"sliding_window": 4}, "sliding_window = 4 is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not supported"),
        ({"hidden_size": None}, "d_model"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"intermediate_size": 48}, "has the shape [40, 24], the model's"),
    ],
)
def test_what_cannot_be_read_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    class_name, settings = DECODERS["llama"]
    theirs(class_name, **settings).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))

    with pytest.raises(UserError) as raised:
        ours(tmp_path)

    assert message in str(raised.value) and str(tmp_path) in str(raised.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    class_name, settings = DECODERS["llama"]
    theirs(class_name, **settings).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")

    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        ours(tmp_path)


@pytest.mark.parametrize(
    ("settings", "head"),
    [
        ({"family": "encoder_decoder", "norm": "rmsnorm", "positions": "rotary"}, "tokens"),
        ({"family": "decoder", "positions": "sinusoidal", "num_kv_heads": 1}, "tokens"),
        ({"family": "encoder", "norm_position": "post"}, "label"),
    ],
    ids=["rotary pairs", "sinusoidal", "post-norm rotary"],
)
def test_a_model_that_is_none_of_theirs_has_a_layout_of_its_own(
    settings: dict[str, Any], head: HeadKind, tmp_path: Path
) -> None:
    config = ModelConfig(**settings, d_model=24, num_heads=3, max_seq_len=16)
    model = Transformer(config, V, head, 2 if head == "label" else 1).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    pretrained.save(model, Folder(str(tmp_path)))

    again = ours(tmp_path, head, model.num_outputs)

    assert not hf.has_architecture(config) and again.config == config
    inputs = {"source_BS": tokens()} if config.family == "encoder_decoder" else {}
    given = tokens(), padding("right")
    torch.testing.assert_close(again(*given, **inputs), model(*given, **inputs), rtol=0, atol=0)
