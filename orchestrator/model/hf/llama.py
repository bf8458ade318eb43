"""Llama (Touvron et al. 2023), Arcee, whose feed-forward has no gate, and EuroBERT (Boizard et al.
2025), an encoder."""

from orchestrator.model.config import ModelConfig
from orchestrator.model.hf.layout import (
    GATED,
    PLAIN,
    Layout,
    Settings,
    activation,
    hf_activation,
    require,
)


def _read(settings: Settings, gated: bool, family: str) -> Settings:
    rope = _rope(settings)
    require(settings, sliding_window=None, partial_rotary_factor=1.0, use_sliding_window=False)
    kinds = set(settings.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ValueError(f"layer_types: {', '.join(sorted(kinds))} is not supported")
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
        "activation": activation(
            settings, "hidden_act", "silu" if gated else "relu2", GATED if gated else PLAIN
        ),
        "bias": bool(settings.get("attention_bias") or settings.get("mlp_bias")),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
    }


def _rope(settings: Settings) -> Settings:
    """The settings of rotary positions, which different versions keep under different keys.

    Raises:
        ValueError: if they scale the positions.
    """
    result: Settings = {}
    for name in ("rope_scaling", "rope_parameters"):
        rope = settings.get(name) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{name} = {rope!r} is not supported")
        kind = rope.get("rope_type", rope.get("type")) or ("unknown" if "factor" in rope else None)
        if kind not in (None, "default"):
            raise ValueError(f"{name}: rope_type = {kind!r} is not supported")
        require(rope, partial_rotary_factor=1.0)
        result |= rope
    return result


def _write(config: ModelConfig) -> Settings:
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": hf_activation(config.activation, GATED if config.is_gated else PLAIN),
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # for versions of transformers before 5
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def _fits(config: ModelConfig, gated: bool, family: str) -> bool:
    return (
        (config.family, config.norm, config.positions) == (family, "rmsnorm", "rotary")
        and (config.norm_position, config.is_gated) == ("pre", gated)
        and not config.embedding_norm
        and not config.token_types
        and config.patches is None
    )


def _lacks_bias(settings: Settings, name: str) -> bool:
    """Llama can have biases in attention only, or in the feed-forward only. This Transformer has
    them in all linear maps or in none."""
    part = "mlp_bias" if ".feed_forward." in name else "attention_bias"
    return not settings.get(part)


def _names(stack: str) -> dict[str, str]:
    block, hf_block = f"{stack}.blocks.{{i}}", "model.layers.{i}"
    return {
        "tokens": "model.embed_tokens",
        f"{block}.attention_norm": f"{hf_block}.input_layernorm",
        f"{block}.attention.query": f"{hf_block}.self_attn.q_proj",
        f"{block}.attention.key": f"{hf_block}.self_attn.k_proj",
        f"{block}.attention.value": f"{hf_block}.self_attn.v_proj",
        f"{block}.attention.output": f"{hf_block}.self_attn.o_proj",
        f"{block}.feed_forward_norm": f"{hf_block}.post_attention_layernorm",
        f"{block}.feed_forward.gate": f"{hf_block}.mlp.gate_proj",
        f"{block}.feed_forward.up": f"{hf_block}.mlp.up_proj",
        f"{block}.feed_forward.output": f"{hf_block}.mlp.down_proj",
        f"{stack}.norm": "model.norm",
    }


def _decoder(model_type: str, name: str, gated: bool) -> Layout:
    return Layout(
        model_type=model_type,
        classes={"tokens": f"{name}ForCausalLM"},
        prefix="model.",
        names=_names("decoder"),
        heads={"tokens": {"head.logits": "lm_head"}},
        read=lambda settings: _read(settings, gated, "decoder"),
        write=_write,
        fits=lambda config: _fits(config, gated, "decoder"),
        lacks_bias=_lacks_bias,
    )


def _pooling_problem(settings: Settings) -> str:
    pooling = settings.get("classifier_pooling", "late")
    return "" if pooling == "mean" else f"classifier_pooling = {pooling!r} is not supported"


EUROBERT = Layout(
    model_type="eurobert",
    classes={
        "tokens": "EuroBertForMaskedLM",
        "label": "EuroBertForSequenceClassification",
        "each_token": "EuroBertForTokenClassification",
    },
    prefix="model.",
    names=_names("encoder"),
    heads={
        "tokens": {"head.logits": "lm_head", "head.bias_V": "lm_head.bias"},
        "label": {"head.dense": "dense", "head.logits": "classifier"},
        "each_token": {"head": "classifier"},
    },
    read=lambda settings: _read(settings, True, "encoder"),
    write=lambda config: {
        **_write(config),
        "classifier_pooling": "mean",
        # The defaults are for a vocabulary of 128,256.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"), 0),
    },
    fits=lambda config: _fits(config, True, "encoder"),
    lacks_bias=_lacks_bias,
    head_problem=_pooling_problem,
)


LLAMA = _decoder("llama", "Llama", gated=True)
ARCEE = _decoder("arcee", "Arcee", gated=False)
