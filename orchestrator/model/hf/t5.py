"""T5, and T5 1.1 and Flan-T5, which gate and have an output head of their own."""

import math

from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import BUCKETS, FAR
from orchestrator.model.hf.layout import (
    PLAIN,
    Layout,
    Settings,
    Weights,
    activation,
    require,
    their_activation,
)

# Its gated gelu is the approximate one.
ACTIVATIONS = {**PLAIN, "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}


def _read(settings: Settings) -> Settings:
    require(
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
        "activation": activation(settings, "feed_forward_proj", "relu", ACTIVATIONS),
        "bias": False,
        "embedding_norm": False,
        "tie_embeddings": settings.get("tie_word_embeddings", True) and scaled,
        "dropout": settings.get("dropout_rate", 0.0),
    }


def _write(config: ModelConfig) -> Settings:
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
        "feed_forward_proj": their_activation(config.activation, ACTIVATIONS),
        "dropout_rate": config.dropout,
        "is_encoder_decoder": True,
    }


BIAS = "SelfAttention.relative_attention_bias"
MAPS = {"gate": "wi_0", "up": "wi_1", "output": "wo"}  # without a gate theirs is `wi`
PARTS = {
    "attention": {m: f"SelfAttention.{m[0]}" for m in ("query", "key", "value", "output")},
    "cross": {m: f"EncDecAttention.{m[0]}" for m in ("query", "key", "value", "output")},
    "feed_forward": {m: f"DenseReluDense.{n}" for m, n in MAPS.items()},
}


def _names() -> dict[str, str]:
    names = {"tokens": "shared"}
    for stack, parts in (
        ("encoder", ("attention", "feed_forward")),
        ("decoder", ("attention", "cross", "feed_forward")),
    ):
        names[f"{stack}.norm"] = f"{stack}.final_layer_norm"
        names[f"{stack}.positions.relative"] = f"{stack}.block.0.layer.0.{BIAS}"
        for number, part in enumerate(parts):
            ours, theirs = f"{stack}.blocks.{{i}}", f"{stack}.block.{{i}}.layer.{number}"
            names[f"{ours}.{part}_norm"] = f"{theirs}.layer_norm"
            names |= {f"{ours}.{part}.{m}": f"{theirs}.{name}" for m, name in PARTS[part].items()}
    return names


def _split(theirs: Weights) -> Weights:
    weights = {name.replace(".wi.", ".wi_1."): tensor for name, tensor in theirs.items()}
    for stack in ("encoder", "decoder"):
        if (twin := f"{stack}.embed_tokens.weight") in weights:  # saved in its place
            weights.setdefault("shared.weight", weights.pop(twin))
    return {name: tensor * _scale(name, weights) for name, tensor in weights.items()}


def _fuse(ours: Weights) -> Weights:
    gated = any(".wi_0." in name for name in ours)
    weights = {name: tensor / _scale(name, ours) for name, tensor in ours.items()}
    return weights if gated else {n.replace(".wi_1.", ".wi."): t for n, t in weights.items()}


def _scale(name: str, weights: Weights) -> float:
    """T5 does not divide its scores by sqrt(K), but what comes out of its decoder by sqrt(D)
    where it has no head of its own: here that is in its queries' weights, and its last norm's."""
    width = len(weights[name])
    if name.endswith("Attention.q.weight"):
        heads = weights[f"encoder.block.0.layer.0.{BIAS}.weight"].shape[1]
        return math.sqrt(width / heads)
    if name == "decoder.final_layer_norm.weight" and "lm_head.weight" not in weights:
        return 1 / math.sqrt(width)
    return 1.0


T5 = Layout(
    model_type="t5",
    classes={"tokens": "T5ForConditionalGeneration"},
    prefix="",
    names=_names(),
    heads={"tokens": {"head.logits": "lm_head"}},
    read=_read,
    write=_write,
    fits=lambda config: (
        (config.family, config.norm, config.norm_position, config.positions)
        == ("encoder_decoder", "rmsnorm", "pre", "relative")
        and not (config.bias or config.embedding_norm or config.token_types)
        and config.activation in ACTIVATIONS.values()
        and config.tie_embeddings
        and config.kv_heads == config.num_heads
    ),
    split=_split,
    fuse=_fuse,
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
