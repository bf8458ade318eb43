"""BART (Lewis et al. 2020), and mBART (Liu et al. 2020), which normalises before each branch."""

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


def _read(settings: Settings, norm_position: str) -> Settings:
    require(settings, scale_embedding=False)
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
        "activation": activation(settings, "activation_function", "gelu", PLAIN),
        "bias": True,
        "embedding_norm": True,
        "tie_embeddings": settings.get("tie_word_embeddings", True),
        "dropout": settings.get("dropout", 0.0),
    }


def _write(config: ModelConfig) -> Settings:
    stacks = {"encoder": config.num_layers, "decoder": config.layers_to_decode}
    return {
        "d_model": config.d_model,
        **{f"{stack}_layers": layers for stack, layers in stacks.items()},
        **{f"{stack}_ffn_dim": config.feed_forward_width for stack in stacks},
        **{f"{stack}_attention_heads": config.num_heads for stack in stacks},
        "max_position_embeddings": config.max_seq_len,
        "activation_function": hf_activation(config.activation, PLAIN),
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "is_encoder_decoder": True,
        # By default BART forces these tokens. Models trained here generate freely.
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
    }


def _names(norm_first: bool) -> dict[str, str]:
    names = {"tokens": "model.shared"}
    for stack in ("encoder", "decoder"):
        block, hf_block = f"{stack}.blocks.{{i}}", f"model.{stack}.layers.{{i}}"
        names |= {
            f"{stack}.positions.learned": f"model.{stack}.embed_positions",
            f"{stack}.embedding_norm": f"model.{stack}.layernorm_embedding",
            f"{block}.attention_norm": f"{hf_block}.self_attn_layer_norm",
            f"{block}.cross_norm": f"{hf_block}.encoder_attn_layer_norm",
            f"{block}.feed_forward_norm": f"{hf_block}.final_layer_norm",
            f"{block}.feed_forward.up": f"{hf_block}.fc1",
            f"{block}.feed_forward.output": f"{hf_block}.fc2",
        }
        for module, hf_module in (("attention", "self_attn"), ("cross", "encoder_attn")):
            for part, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
                names[f"{block}.{module}.{part}"] = f"{hf_block}.{hf_module}.{letter}_proj"
        if norm_first:
            names[f"{stack}.norm"] = f"model.{stack}.layer_norm"
    return names


OFFSET = 2  # unused rows at the start of its position tables
TABLES = tuple(f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder"))
BIAS = "final_logits_bias"


def _split(hf_weights: Weights) -> Weights:
    weights = dict(hf_weights)
    for name in TABLES:
        if name in weights:
            weights[name] = weights[name][OFFSET:]
    for stack in ("encoder", "decoder"):
        # A file may have the shared embedding under the name of a stack.
        if (alias := f"model.{stack}.embed_tokens.weight") in weights:
            weights.setdefault("model.shared.weight", weights.pop(alias))
    if BIAS not in weights and "model.shared.weight" in weights:
        weights[BIAS] = torch.zeros(len(weights["model.shared.weight"]))
    return weights


def _fuse(weights: Weights) -> Weights:
    hf_weights = dict(weights)
    for name in TABLES:
        hf_weights[name] = torch.nn.functional.pad(weights[name], (0, 0, OFFSET, 0))
    hf_weights[BIAS] = weights[BIAS].reshape(1, -1)
    return hf_weights


def _layout(model_type: str, name: str, norm_position: str) -> Layout:
    return Layout(
        model_type=model_type,
        classes={"tokens": f"{name}ForConditionalGeneration"},
        prefix="model.",
        names=_names(norm_position == "pre"),
        heads={"tokens": {"head.bias_V": BIAS, "head.logits": "lm_head"}},
        read=lambda settings: _read(settings, norm_position),
        write=_write,
        fits=lambda config: (
            (config.family, config.norm, config.positions, config.bias)
            == ("encoder_decoder", "layernorm", "learned", True)
            and (config.norm_position, config.norm_eps) == (norm_position, 1e-5)
            and config.embedding_norm
            and not (config.is_gated or config.token_types)
            and has_plain_heads(config)
        ),
        split=_split,
        fuse=_fuse,
        ignored=r"model\.(en|de)coder\.version|.*\.embed_positions\.(weights|_float_tensor)",
    )


BART = _layout("bart", "Bart", "post")
MBART = _layout("mbart", "MBart", "pre")
