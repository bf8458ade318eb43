"""T5 (Raffel et al. 2020); and T5 1.1 and Flan-T5, which have gates and an untied head."""

import math

from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import MAX_DISTANCE, NUM_BUCKETS
from orchestrator.model.hf.layout import (
    PLAIN,
    Layout,
    Settings,
    Weights,
    activation,
    hf_activation,
    require,
)

# T5's `gated-gelu` is the tanh approximation.
ACTIVATIONS = {**PLAIN, "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}


def _read(settings: Settings) -> Settings:
    require(
        settings,
        relative_attention_num_buckets=NUM_BUCKETS,
        relative_attention_max_distance=MAX_DISTANCE,
    )
    layers, decoder_layers = settings["num_layers"], settings.get("num_decoder_layers")
    # Older configs lack `scale_decoder_outputs`; there only `tie_word_embeddings` decides.
    scaled = settings.get("scale_decoder_outputs", True)
    return {
        "family": "encoder_decoder",
        "num_layers": layers,
        "num_decoder_layers": None if decoder_layers in (None, layers) else decoder_layers,
        "d_model": settings["d_model"],
        "num_heads": settings["num_heads"],
        "head_dim": settings["d_kv"],
        "d_ff": settings["d_ff"],
        # T5 has no limit; this is the length of its training.
        "max_seq_len": settings.get("n_positions", 512),
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
        "relative_attention_num_buckets": NUM_BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
        "feed_forward_proj": hf_activation(config.activation, ACTIVATIONS),
        "dropout_rate": config.dropout,
        "is_encoder_decoder": True,
    }


BIAS = "SelfAttention.relative_attention_bias"
MAPS = {"gate": "wi_0", "up": "wi_1", "output": "wo"}  # without a gate T5 calls `up` `wi`
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
            block, layer = f"{stack}.blocks.{{i}}", f"{stack}.block.{{i}}.layer.{number}"
            names[f"{block}.{part}_norm"] = f"{layer}.layer_norm"
            names |= {f"{block}.{part}.{m}": f"{layer}.{name}" for m, name in PARTS[part].items()}
    return names


def _split(hf_weights: Weights) -> Weights:
    weights = {name.replace(".wi.", ".wi_1."): tensor for name, tensor in hf_weights.items()}
    for stack in ("encoder", "decoder"):
        # A file may have the shared embedding under the name of a stack.
        if (alias := f"{stack}.embed_tokens.weight") in weights:
            weights.setdefault("shared.weight", weights.pop(alias))
    return {name: tensor * _scale(name, weights) for name, tensor in weights.items()}


def _fuse(weights: Weights) -> Weights:
    gated = any(".wi_0." in name for name in weights)
    hf_weights = {name: tensor / _scale(name, weights) for name, tensor in weights.items()}
    return hf_weights if gated else {n.replace(".wi_1.", ".wi."): t for n, t in hf_weights.items()}


def _scale(name: str, weights: Weights) -> float:
    """The factor between T5's weight and this Transformer's.

    T5 does not divide attention scores by sqrt(K). If its head is tied, T5 divides the decoder's
    output by sqrt(D). Here the weights of the queries and of the decoder's last norm hold these
    factors.
    """
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
