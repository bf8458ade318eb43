"""GPT-2 (Radford et al. 2019). It stores linear maps transposed, and the maps to queries, keys and
values as one tensor."""

import re

import torch

from orchestrator.model.config import ModelConfig
from orchestrator.model.hf.layout import (
    PLAIN,
    Layout,
    Settings,
    Weights,
    activation,
    has_plain_heads,
    hf_activation,
    require,
)


def _read(settings: Settings) -> Settings:
    require(settings, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    require(settings, add_cross_attention=False)
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
        "activation": activation(settings, "activation_function", "gelu_new", PLAIN),
        "bias": True,
        "tie_embeddings": settings.get("tie_word_embeddings", True),
    }


def _write(config: ModelConfig) -> Settings:
    return {
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.feed_forward_width,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": hf_activation(config.activation, PLAIN),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


PARTS = ("q_attn", "k_attn", "v_attn")  # names for the parts of c_attn, used only in this package
MAPS = r"(c_attn|c_proj|c_fc|[qkv]_attn)\.weight$"


def _split(hf_weights: Weights) -> Weights:
    weights: Weights = {}
    for name, tensor in hf_weights.items():
        if re.search(MAPS, name):
            tensor = tensor.T
        if ".c_attn." in name:
            for part, piece in zip(PARTS, tensor.chunk(3), strict=True):
                weights[name.replace("c_attn", part)] = piece
        else:
            weights[name] = tensor
    return weights


def _fuse(weights: Weights) -> Weights:
    hf_weights: Weights = {}
    for name, tensor in weights.items():
        if ".q_attn." in name:
            parts = [weights[name.replace("q_attn", part)] for part in PARTS]
            name, tensor = name.replace("q_attn", "c_attn"), torch.cat(parts)
        if ".k_attn." not in name and ".v_attn." not in name:
            hf_weights[name] = tensor.T if re.search(MAPS, name) else tensor
    return hf_weights


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
    read=_read,
    write=_write,
    fits=lambda config: (
        (config.family, config.norm, config.norm_position, config.positions, config.bias)
        == ("decoder", "layernorm", "pre", "learned", True)
        and not (config.is_gated or config.embedding_norm or config.token_types)
        and has_plain_heads(config)
    ),
    split=_split,
    fuse=_fuse,
    name_in_file=lambda name: re.sub(r"\b[qkv]_attn\b", "c_attn", name),
    more_classes=("GPT2DoubleHeadsModel",),
    ignored=r".*\.attn\.(bias|masked_bias)",
)
