"""Hugging Face's architectures that are this Transformer, and their names for its parts.

Each is a `Layout`: how its config translates, and what its modules are called. A model that is none
of theirs has a layout of its own, `OURS`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import BUCKETS, FAR
from orchestrator.model.transformer import HeadKind, Transformer

Settings = dict[str, Any]  # what a config.json holds
Weights = dict[str, Tensor]

# Their names of activations, by what is done to one map, or to the gate of two.
PLAIN = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
PLAIN |= {"relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
T5S = {**PLAIN, "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}  # its gelu is the other one


@dataclass(frozen=True)
class Layout:
    """One of Hugging Face's architectures, or our own."""

    model_type: str
    classes: Mapping[HeadKind, str]  # the class to load it with, by head
    prefix: str  # of the body's names in a model with a head; a body alone may lack it
    # Modules and parameters, ours to theirs; {i} is a block's number. None: they have our names.
    names: Mapping[str, str] | None
    read: Callable[[Settings], Settings]  # their config into values of ModelConfig
    write: Callable[[ModelConfig], Settings]
    fits: Callable[[ModelConfig], bool]  # whether a model of ours is one of these
    heads: Mapping[HeadKind, Mapping[str, str]]  # more names
    split: Callable[[Weights], Weights] = dict  # their tensors as ours are cut, and back
    fuse: Callable[[Weights], Weights] = dict
    biases_optional: bool = False  # a map without a bias has one of zeros


def read_config(settings: Settings) -> ModelConfig:
    """The architecture that a config.json describes.

    Raises:
        ValueError: where it is none that this Transformer can be.
    """
    try:
        return ModelConfig(**_layout(settings).read(settings))
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None


def load(model: Transformer, settings: Settings, weights: Weights) -> list[str]:
    """Fill a model with the weights of one of theirs; returns the names of what stays as it was.

    That is a head which those weights have none of: a new task begins with a new head.

    Raises:
        ValueError: where a weight is missing or has another shape.
    """
    layout = _layout(settings)
    theirs = layout.split(_with_prefix(weights, layout))
    wanted = model.state_dict()
    found: Weights = {}
    for name, tensor in wanted.items():
        their_name = _their_name(name, layout, model.head_kind)
        value = theirs.get(their_name) if their_name else None
        if value is None and layout.biases_optional and name.endswith(".bias"):
            value = torch.zeros_like(tensor)
        if value is None and not name.startswith("head."):
            raise ValueError(f"there is no {their_name or name}")
        if value is None:
            continue
        if value.numel() == tensor.numel():  # axes of length 1 are theirs to have
            value = value.reshape(tensor.shape)
        if value.shape != tensor.shape:
            raise ValueError(
                f"{their_name} has the shape {list(value.shape)}, the model's {name} "
                f"{list(tensor.shape)}"
            )
        found[name] = value
    head = [name for name in wanted if name.startswith("head.")]
    new = head if any(name not in found for name in head) else []  # half a head is none
    model.load_state_dict({**wanted, **{k: v for k, v in found.items() if k not in new}})
    return new


def is_theirs(config: ModelConfig) -> bool:
    """Whether an architecture of Hugging Face's is such a model."""
    return _layout_of(config) is not OURS


def export_config(model: Transformer, labels: list[str] | None = None, **more: Any) -> Settings:
    """What config.json holds; `more` are ids of special tokens, which the model does not know."""
    layout = _layout_of(model.config)
    settings = layout.write(model.config)
    if model.head_kind != "tokens":
        names = labels or [f"LABEL_{i}" for i in range(model.num_outputs)]
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    return {
        "architectures": [layout.classes[model.head_kind]],
        "model_type": layout.model_type,
        **({"vocab_size": model.vocab_size} if model.tokens is not None else {}),
        "tie_word_embeddings": model.config.tie_embeddings,
        "dtype": "float32",
        **settings,
        **more,
    }


def export_weights(model: Transformer) -> Weights:
    """What model.safetensors holds, float32 on the CPU."""
    layout = _layout_of(model.config)
    theirs: Weights = {}
    for name, tensor in model.state_dict().items():
        their_name = _their_name(name, layout, model.head_kind)
        assert their_name is not None, name
        theirs[their_name] = tensor.detach().float().cpu()
    return {name: tensor.contiguous() for name, tensor in layout.fuse(theirs).items()}


def _layout(settings: Settings) -> Layout:
    for layout in (*LAYOUTS, OURS):
        if layout.model_type == settings.get("model_type"):
            return layout
    known = ", ".join(layout.model_type for layout in LAYOUTS)
    raise ValueError(
        f"model_type = {settings.get('model_type')!r} cannot be loaded; these can: {known}"
    )


def _layout_of(config: ModelConfig) -> Layout:
    return next((layout for layout in LAYOUTS if layout.fits(config)), OURS)


def _with_prefix(weights: Weights, layout: Layout) -> Weights:
    """A body that was saved alone has names without its prefix."""
    if any(name.startswith(layout.prefix) for name in weights):
        return weights
    return {layout.prefix + name: tensor for name, tensor in weights.items()}


def _their_name(name: str, layout: Layout, head: HeadKind) -> str | None:
    """Their name of one of our parameters; None where the layout has no such thing."""
    if layout.names is None:
        return name
    number = re.search(r"\.blocks\.(\d+)\.", name)
    plain = re.sub(r"\.blocks\.\d+\.", ".blocks.{i}.", name)
    names = {**layout.names, **layout.heads.get(head, {})}
    theirs = names.get(plain)
    if theirs is None:
        module, _, kind = plain.rpartition(".")
        theirs = names.get(module)
        theirs = f"{theirs}.{kind}" if theirs is not None else None
    if theirs is None:
        return None
    return theirs.replace("{i}", number[1]) if number else theirs


def _require(settings: Settings, **wanted: Any) -> None:
    """Refuse a setting that changes what the model computes in a way that ours does not know."""
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} = {settings[name]!r} is not supported")


def _activation(settings: Settings, name: str, default: str, known: Mapping[str, str]) -> str:
    theirs = settings.get(name, default)
    if theirs not in known:
        raise ValueError(f"{name} = {theirs!r} is not supported; {', '.join(known)} are")
    return known[theirs]


def _their_activation(ours: str, known: Mapping[str, str]) -> str:
    return next(theirs for theirs, name in known.items() if name == ours)


# Llama, and those that differ from it in the feed-forward or look both ways.


def _read_llama(settings: Settings, gated: bool, family: str) -> Settings:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type = {kind!r} is not supported")
    _require(settings, sliding_window=None, partial_rotary_factor=1.0, use_sliding_window=False)
    return {
        "family": family,
        "num_layers": settings["num_hidden_layers"],
        "d_model": settings["hidden_size"],
        "num_heads": settings["num_attention_heads"],
        "num_kv_heads": settings.get("num_key_value_heads"),
        "head_dim": settings.get("head_dim"),
        "d_ff": settings["intermediate_size"],
        "max_seq_len": settings["max_position_embeddings"],
        "norm": "rmsnorm",
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "positions": "rotary",
        "rope_theta": rope.get("rope_theta", settings.get("rope_theta", 10_000.0)),
        "activation": _activation(
            settings, "hidden_act", "silu" if gated else "relu2", GATED if gated else PLAIN
        ),
        "bias": bool(settings.get("attention_bias") or settings.get("mlp_bias")),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
    }


def _write_llama(config: ModelConfig) -> Settings:
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": _their_activation(config.activation, GATED if config.is_gated else PLAIN),
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # where versions before 5 look
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def _is_llama(config: ModelConfig, gated: bool, family: str) -> bool:
    return (
        (config.family, config.norm, config.positions) == (family, "rmsnorm", "rotary")
        and (config.norm_position, config.is_gated) == ("pre", gated)
        and not config.embedding_norm
        and not config.token_types
        and config.patches is None
    )


def _llama_names(stack: str) -> dict[str, str]:
    block, theirs = f"{stack}.blocks.{{i}}", "model.layers.{i}"
    return {
        "tokens": "model.embed_tokens",
        f"{block}.attention_norm": f"{theirs}.input_layernorm",
        f"{block}.attention.query": f"{theirs}.self_attn.q_proj",
        f"{block}.attention.key": f"{theirs}.self_attn.k_proj",
        f"{block}.attention.value": f"{theirs}.self_attn.v_proj",
        f"{block}.attention.output": f"{theirs}.self_attn.o_proj",
        f"{block}.feed_forward_norm": f"{theirs}.post_attention_layernorm",
        f"{block}.feed_forward.gate": f"{theirs}.mlp.gate_proj",
        f"{block}.feed_forward.up": f"{theirs}.mlp.up_proj",
        f"{block}.feed_forward.output": f"{theirs}.mlp.down_proj",
        f"{stack}.norm": "model.norm",
    }


def _llama(model_type: str, name: str, gated: bool) -> Layout:
    return Layout(
        model_type=model_type,
        classes={"tokens": f"{name}ForCausalLM"},
        prefix="model.",
        names=_llama_names("decoder"),
        heads={"tokens": {"head.logits": "lm_head"}},
        read=lambda settings: _read_llama(settings, gated, "decoder"),
        write=_write_llama,
        fits=lambda config: _is_llama(config, gated, "decoder"),
        biases_optional=True,
    )


EUROBERT = Layout(
    model_type="eurobert",
    classes={
        "tokens": "EuroBertForMaskedLM",
        "label": "EuroBertForSequenceClassification",
        "each_token": "EuroBertForTokenClassification",
    },
    prefix="model.",
    names=_llama_names("encoder"),
    heads={
        "tokens": {"head.logits": "lm_head", "head.bias_V": "lm_head.bias"},
        "label": {"head.dense": "dense", "head.logits": "classifier"},
        "each_token": {"head": "classifier"},
    },
    read=lambda settings: _read_llama(settings, True, "encoder"),
    write=lambda config: {
        **_write_llama(config),
        "classifier_pooling": "mean",
        # Where a config does not say, it has those of a vocabulary of 128,256.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"), 0),
    },
    fits=lambda config: _is_llama(config, True, "encoder"),
    biases_optional=True,
)


# GPT-2, whose maps are stored transposed, and queries, keys and values as one.


def _read_gpt2(settings: Settings) -> Settings:
    _require(settings, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    _require(settings, add_cross_attention=False)
    return {
        "family": "decoder",
        "num_layers": settings["n_layer"],
        "d_model": settings["n_embd"],
        "num_heads": settings["n_head"],
        "d_ff": settings.get("n_inner"),
        "max_seq_len": settings["n_positions"],
        "norm": "layernorm",
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "activation": _activation(settings, "activation_function", "gelu_new", PLAIN),
        "bias": True,
        "tie_embeddings": settings.get("tie_word_embeddings", True),
    }


def _write_gpt2(config: ModelConfig) -> Settings:
    return {
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.feed_forward_width,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": _their_activation(config.activation, PLAIN),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


GPT2_PARTS = ("q_attn", "k_attn", "v_attn")  # of c_attn: names of ours, that no file has
GPT2_MAPS = r"(c_attn|c_proj|c_fc|[qkv]_attn)\.weight$"


def _split_gpt2(theirs: Weights) -> Weights:
    weights: Weights = {}
    for name, tensor in theirs.items():
        if re.search(GPT2_MAPS, name):
            tensor = tensor.T
        if ".c_attn." in name:
            for part, piece in zip(GPT2_PARTS, tensor.chunk(3), strict=True):
                weights[name.replace("c_attn", part)] = piece
        else:
            weights[name] = tensor
    return weights


def _fuse_gpt2(ours: Weights) -> Weights:
    weights: Weights = {}
    for name, tensor in ours.items():
        if ".q_attn." in name:
            parts = [ours[name.replace("q_attn", part)] for part in GPT2_PARTS]
            name, tensor = name.replace("q_attn", "c_attn"), torch.cat(parts)
        if ".k_attn." not in name and ".v_attn." not in name:
            weights[name] = tensor.T if re.search(GPT2_MAPS, name) else tensor
    return weights


GPT2 = Layout(
    model_type="gpt2",
    classes={"tokens": "GPT2LMHeadModel"},
    prefix="transformer.",
    names={
        "tokens": "transformer.wte",
        "decoder.positions.learned": "transformer.wpe",
        "decoder.blocks.{i}.attention_norm": "transformer.h.{i}.ln_1",
        "decoder.blocks.{i}.attention.query": "transformer.h.{i}.attn.q_attn",
        "decoder.blocks.{i}.attention.key": "transformer.h.{i}.attn.k_attn",
        "decoder.blocks.{i}.attention.value": "transformer.h.{i}.attn.v_attn",
        "decoder.blocks.{i}.attention.output": "transformer.h.{i}.attn.c_proj",
        "decoder.blocks.{i}.feed_forward_norm": "transformer.h.{i}.ln_2",
        "decoder.blocks.{i}.feed_forward.up": "transformer.h.{i}.mlp.c_fc",
        "decoder.blocks.{i}.feed_forward.output": "transformer.h.{i}.mlp.c_proj",
        "decoder.norm": "transformer.ln_f",
    },
    heads={"tokens": {"head.logits": "lm_head"}},
    read=_read_gpt2,
    write=_write_gpt2,
    fits=lambda config: (
        (config.family, config.norm, config.norm_position, config.positions, config.bias)
        == ("decoder", "layernorm", "pre", "learned", True)
        and not (config.is_gated or config.embedding_norm or config.token_types)
        and (config.head_dim, config.kv_heads) == (None, config.num_heads)
    ),
    split=_split_gpt2,
    fuse=_fuse_gpt2,
)


# BERT, normalised after each branch.


def _read_bert(settings: Settings) -> Settings:
    _require(settings, position_embedding_type="absolute", is_decoder=False)
    _require(settings, add_cross_attention=False)
    return {
        **_read_usual(settings),
        "norm_position": "post",
        "max_seq_len": settings["max_position_embeddings"],
        "positions": "learned",
        "embedding_norm": True,
        "token_types": settings.get("type_vocab_size", 2),
        "tie_embeddings": settings.get("tie_word_embeddings", True),
    }


def _read_usual(settings: Settings) -> Settings:
    """What BERT and ViT have in common."""
    return {
        "family": "encoder",
        "num_layers": settings["num_hidden_layers"],
        "d_model": settings["hidden_size"],
        "num_heads": settings["num_attention_heads"],
        "d_ff": settings["intermediate_size"],
        "norm": "layernorm",
        "norm_eps": settings.get("layer_norm_eps", 1e-12),
        "activation": _activation(settings, "hidden_act", "gelu", PLAIN),
        "bias": True,
        "dropout": settings.get("hidden_dropout_prob", 0.0),
    }


def _write_usual(config: ModelConfig) -> Settings:
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": _their_activation(config.activation, PLAIN),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _is_usual(config: ModelConfig, norm_position: str, patches: bool) -> bool:
    return (
        (config.family, config.norm, config.norm_position, config.positions, config.bias)
        == ("encoder", "layernorm", norm_position, "learned", True)
        and not config.is_gated
        and (config.head_dim, config.kv_heads) == (None, config.num_heads)
        and (config.patches is not None) == patches
    )


BERT = Layout(
    model_type="bert",
    classes={
        "tokens": "BertForMaskedLM",
        "label": "BertForSequenceClassification",
        "each_token": "BertForTokenClassification",
    },
    prefix="bert.",
    names={
        "tokens": "bert.embeddings.word_embeddings",
        "types": "bert.embeddings.token_type_embeddings",
        "encoder.positions.learned": "bert.embeddings.position_embeddings",
        "encoder.embedding_norm": "bert.embeddings.LayerNorm",
        "encoder.blocks.{i}.attention.query": "bert.encoder.layer.{i}.attention.self.query",
        "encoder.blocks.{i}.attention.key": "bert.encoder.layer.{i}.attention.self.key",
        "encoder.blocks.{i}.attention.value": "bert.encoder.layer.{i}.attention.self.value",
        "encoder.blocks.{i}.attention.output": "bert.encoder.layer.{i}.attention.output.dense",
        "encoder.blocks.{i}.attention_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
        "encoder.blocks.{i}.feed_forward.up": "bert.encoder.layer.{i}.intermediate.dense",
        "encoder.blocks.{i}.feed_forward.output": "bert.encoder.layer.{i}.output.dense",
        "encoder.blocks.{i}.feed_forward_norm": "bert.encoder.layer.{i}.output.LayerNorm",
    },
    heads={
        "tokens": {
            "head.dense": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
            "head.logits": "cls.predictions.decoder",
            "head.bias_V": "cls.predictions.bias",
        },
        "label": {"head.dense": "bert.pooler.dense", "head.logits": "classifier"},
        "each_token": {"head": "classifier"},
    },
    read=_read_bert,
    write=lambda config: {
        **_write_usual(config),
        "max_position_embeddings": config.max_seq_len,
        "type_vocab_size": config.token_types,
    },
    fits=lambda config: (
        _is_usual(config, "post", patches=False)
        and config.embedding_norm
        and config.token_types > 0
    ),
)


def _read_vit(settings: Settings) -> Settings:
    image, patch = settings.get("image_size", 224), settings.get("patch_size", 16)
    if not isinstance(image, int) or not isinstance(patch, int):
        raise ValueError("image_size and patch_size must be whole numbers: squares are supported")
    count = (image // patch) ** 2
    channels = settings.get("num_channels", 3)
    return {
        **_read_usual(settings),
        "norm_position": "pre",
        "max_seq_len": max(2, count + 1),
        "positions": "learned",
        "patches": {"image_size": image, "patch_size": patch, "channels": channels},
    }


def _write_vit(config: ModelConfig) -> Settings:
    assert config.patches is not None
    return {
        **_write_usual(config),
        "image_size": config.patches.image_size,
        "patch_size": config.patches.patch_size,
        "num_channels": config.patches.channels,
        "qkv_bias": True,
    }


VIT = Layout(
    model_type="vit",
    classes={"label": "ViTForImageClassification"},
    prefix="vit.",
    names={
        "patches.projection": "vit.embeddings.patch_embeddings.projection",
        "patches.start_D": "vit.embeddings.cls_token",
        "encoder.positions.learned.weight": "vit.embeddings.position_embeddings",
        "encoder.blocks.{i}.attention_norm": "vit.encoder.layer.{i}.layernorm_before",
        "encoder.blocks.{i}.attention.query": "vit.encoder.layer.{i}.attention.attention.query",
        "encoder.blocks.{i}.attention.key": "vit.encoder.layer.{i}.attention.attention.key",
        "encoder.blocks.{i}.attention.value": "vit.encoder.layer.{i}.attention.attention.value",
        "encoder.blocks.{i}.attention.output": "vit.encoder.layer.{i}.attention.output.dense",
        "encoder.blocks.{i}.feed_forward_norm": "vit.encoder.layer.{i}.layernorm_after",
        "encoder.blocks.{i}.feed_forward.up": "vit.encoder.layer.{i}.intermediate.dense",
        "encoder.blocks.{i}.feed_forward.output": "vit.encoder.layer.{i}.output.dense",
        "encoder.norm": "vit.layernorm",
    },
    heads={"label": {"head.logits": "classifier"}},
    read=_read_vit,
    write=_write_vit,
    fits=lambda config: (
        _is_usual(config, "pre", patches=True) and not (config.embedding_norm or config.token_types)
    ),
    biases_optional=True,  # qkv_bias = false
    fuse=lambda ours: _with_axes(ours, "vit.embeddings."),
)


def _with_axes(ours: Weights, prefix: str) -> Weights:
    """ViT's two parameters that are no module's have an axis or two of length 1 in front."""
    names = (f"{prefix}cls_token", f"{prefix}position_embeddings")
    return {
        name: tensor.reshape(1, -1, tensor.shape[-1]) if name in names else tensor
        for name, tensor in ours.items()
    }


# BART, and mBART with its norms before the branches.


def _read_bart(settings: Settings, norm_position: str) -> Settings:
    _require(settings, scale_embedding=False)
    for name in ("ffn_dim", "attention_heads"):
        if settings[f"encoder_{name}"] != settings[f"decoder_{name}"]:
            raise ValueError(f"encoder_{name} and decoder_{name} must be equal")
    same = settings["encoder_layers"] == settings["decoder_layers"]
    return {
        "family": "encoder_decoder",
        "num_layers": settings["encoder_layers"],
        "num_decoder_layers": None if same else settings["decoder_layers"],
        "d_model": settings["d_model"],
        "num_heads": settings["encoder_attention_heads"],
        "d_ff": settings["encoder_ffn_dim"],
        "max_seq_len": settings["max_position_embeddings"],
        "norm": "layernorm",
        "norm_position": norm_position,
        "norm_eps": 1e-5,
        "positions": "learned",
        "activation": _activation(settings, "activation_function", "gelu", PLAIN),
        "bias": True,
        "embedding_norm": True,
        "tie_embeddings": settings.get("tie_word_embeddings", True),
        "dropout": settings.get("dropout", 0.0),
    }


def _write_bart(config: ModelConfig) -> Settings:
    stacks = {"encoder": config.num_layers, "decoder": config.layers_to_decode}
    return {
        "d_model": config.d_model,
        **{f"{stack}_layers": layers for stack, layers in stacks.items()},
        **{f"{stack}_ffn_dim": config.feed_forward_width for stack in stacks},
        **{f"{stack}_attention_heads": config.num_heads for stack in stacks},
        "max_position_embeddings": config.max_seq_len,
        "activation_function": _their_activation(config.activation, PLAIN),
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "is_encoder_decoder": True,
        # Theirs force these where a config does not say; ours generate freely.
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
    }


def _bart_names(norm_first: bool) -> dict[str, str]:
    names = {"tokens": "model.shared"}
    for stack in ("encoder", "decoder"):
        block, theirs = f"{stack}.blocks.{{i}}", f"model.{stack}.layers.{{i}}"
        names |= {
            f"{stack}.positions.learned": f"model.{stack}.embed_positions",
            f"{stack}.embedding_norm": f"model.{stack}.layernorm_embedding",
            f"{block}.attention_norm": f"{theirs}.self_attn_layer_norm",
            f"{block}.cross_norm": f"{theirs}.encoder_attn_layer_norm",
            f"{block}.feed_forward_norm": f"{theirs}.final_layer_norm",
            f"{block}.feed_forward.up": f"{theirs}.fc1",
            f"{block}.feed_forward.output": f"{theirs}.fc2",
        }
        for ours, module in (("attention", "self_attn"), ("cross", "encoder_attn")):
            for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
                names[f"{block}.{ours}.{part}"] = f"{theirs}.{module}.{name}_proj"
        if norm_first:
            names[f"{stack}.norm"] = f"model.{stack}.layer_norm"
    return names


BART_OFFSET = 2  # rows of its position tables that stand for nothing
BART_TABLES = tuple(f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder"))
BART_BIAS = "final_logits_bias"


def _split_bart(theirs: Weights) -> Weights:
    weights = dict(theirs)
    for name in BART_TABLES:
        if name in weights:
            weights[name] = weights[name][BART_OFFSET:]
    for twin in ("model.encoder.embed_tokens.weight", "lm_head.weight"):  # saved in its place
        if twin in weights:
            weights.setdefault("model.shared.weight", weights[twin])
    if BART_BIAS not in weights and "model.shared.weight" in weights:
        weights[BART_BIAS] = torch.zeros(len(weights["model.shared.weight"]))
    return weights


def _fuse_bart(ours: Weights) -> Weights:
    weights = dict(ours)
    for name in BART_TABLES:
        weights[name] = torch.nn.functional.pad(weights[name], (0, 0, BART_OFFSET, 0))
    weights[BART_BIAS] = weights[BART_BIAS].reshape(1, -1)
    return weights


def _bart(model_type: str, name: str, norm_position: str) -> Layout:
    return Layout(
        model_type=model_type,
        classes={"tokens": f"{name}ForConditionalGeneration"},
        prefix="model.",
        names=_bart_names(norm_position == "pre"),
        heads={"tokens": {"head.bias_V": BART_BIAS, "head.logits": "lm_head"}},
        read=lambda settings: _read_bart(settings, norm_position),
        write=_write_bart,
        fits=lambda config: (
            (config.family, config.norm, config.positions, config.bias)
            == ("encoder_decoder", "layernorm", "learned", True)
            and (config.norm_position, config.norm_eps) == (norm_position, 1e-5)
            and config.embedding_norm
            and not (config.is_gated or config.token_types)
            and (config.head_dim, config.kv_heads) == (None, config.num_heads)
        ),
        split=_split_bart,
        fuse=_fuse_bart,
    )


# T5, and T5 1.1 and Flan-T5, which gate and have an output head of their own.


def _read_t5(settings: Settings) -> Settings:
    _require(
        settings,
        relative_attention_num_buckets=BUCKETS,
        relative_attention_max_distance=FAR,
    )
    layers, decoder_layers = settings["num_layers"], settings.get("num_decoder_layers")
    # An older config says so by the ties alone.
    scaled = settings.get("scale_decoder_outputs", True)
    return {
        "family": "encoder_decoder",
        "num_layers": layers,
        "num_decoder_layers": None if decoder_layers in (None, layers) else decoder_layers,
        "d_model": settings["d_model"],
        "num_heads": settings["num_heads"],
        "head_dim": settings["d_kv"],
        "d_ff": settings["d_ff"],
        "max_seq_len": settings.get("n_positions", 512),  # which it was trained with: it has no end
        "norm": "rmsnorm",
        "norm_position": "pre",
        "norm_eps": settings.get("layer_norm_epsilon", 1e-6),
        "positions": "relative",
        "activation": _activation(settings, "feed_forward_proj", "relu", T5S),
        "bias": False,
        "embedding_norm": False,
        "tie_embeddings": settings.get("tie_word_embeddings", True) and scaled,
        "dropout": settings.get("dropout_rate", 0.0),
    }


def _write_t5(config: ModelConfig) -> Settings:
    return {
        "num_layers": config.num_layers,
        "num_decoder_layers": config.layers_to_decode,
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "d_kv": config.head_width,
        "d_ff": config.feed_forward_width,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": FAR,
        "feed_forward_proj": _their_activation(config.activation, T5S),
        "dropout_rate": config.dropout,
        "is_encoder_decoder": True,
    }


T5_BIAS = "SelfAttention.relative_attention_bias"
T5_MAPS = {"gate": "wi_0", "up": "wi_1", "output": "wo"}  # without a gate theirs is `wi`
T5_PARTS = {
    "attention": {m: f"SelfAttention.{m[0]}" for m in ("query", "key", "value", "output")},
    "cross": {m: f"EncDecAttention.{m[0]}" for m in ("query", "key", "value", "output")},
    "feed_forward": {m: f"DenseReluDense.{n}" for m, n in T5_MAPS.items()},
}


def _t5_names() -> dict[str, str]:
    names = {"tokens": "shared"}
    for stack, parts in (
        ("encoder", ("attention", "feed_forward")),
        ("decoder", ("attention", "cross", "feed_forward")),
    ):
        names[f"{stack}.norm"] = f"{stack}.final_layer_norm"
        names[f"{stack}.positions.relative"] = f"{stack}.block.0.layer.0.{T5_BIAS}"
        for number, part in enumerate(parts):
            ours, theirs = f"{stack}.blocks.{{i}}", f"{stack}.block.{{i}}.layer.{number}"
            names[f"{ours}.{part}_norm"] = f"{theirs}.layer_norm"
            names |= {
                f"{ours}.{part}.{m}": f"{theirs}.{name}" for m, name in T5_PARTS[part].items()
            }
    return names


def _split_t5(theirs: Weights) -> Weights:
    weights = {name.replace(".wi.", ".wi_1."): tensor for name, tensor in theirs.items()}
    return {name: tensor * _t5_scale(name, weights) for name, tensor in weights.items()}


def _fuse_t5(ours: Weights) -> Weights:
    gated = any(".wi_0." in name for name in ours)
    weights = {name: tensor / _t5_scale(name, ours) for name, tensor in ours.items()}
    return weights if gated else {n.replace(".wi_1.", ".wi."): t for n, t in weights.items()}


def _t5_scale(name: str, weights: Weights) -> float:
    """T5 does not divide its scores by sqrt(K), but what comes out of its decoder by sqrt(D)
    where it has no head of its own: here that is in its queries' weights, and its last norm's."""
    width = len(weights[name])
    if name.endswith("Attention.q.weight"):
        heads = weights[f"encoder.block.0.layer.0.{T5_BIAS}.weight"].shape[1]
        return math.sqrt(width / heads)
    if name == "decoder.final_layer_norm.weight" and "lm_head.weight" not in weights:
        return 1 / math.sqrt(width)
    return 1.0


T5 = Layout(
    model_type="t5",
    classes={"tokens": "T5ForConditionalGeneration"},
    prefix="",
    names=_t5_names(),
    heads={"tokens": {"head.logits": "lm_head"}},
    read=_read_t5,
    write=_write_t5,
    fits=lambda config: (
        (config.family, config.norm, config.norm_position, config.positions)
        == ("encoder_decoder", "rmsnorm", "pre", "relative")
        and not (config.bias or config.embedding_norm or config.token_types)
        and config.activation in T5S.values()
        and config.tie_embeddings
        and config.kv_heads == config.num_heads
    ),
    split=_split_t5,
    fuse=_fuse_t5,
)

LAYOUTS = (
    _llama("llama", "Llama", gated=True),
    _llama("arcee", "Arcee", gated=False),
    EUROBERT,
    GPT2,
    BERT,
    VIT,
    T5,
    _bart("bart", "Bart", "post"),
    _bart("mbart", "MBart", "pre"),
)

OURS = Layout(
    model_type="orchestrator",
    classes=dict.fromkeys(("tokens", "label", "each_token"), "Transformer"),
    prefix="",
    names=None,
    heads={},
    read=lambda settings: dict(settings["transformer"]),
    write=lambda config: {"transformer": config.model_dump(exclude={"init_from"})},
    fits=lambda config: True,
)
