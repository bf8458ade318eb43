"""BERT (Devlin et al. 2019), which normalises after each branch, and ViT (Dosovitskiy et al. 2021),
which reads images and normalises before each branch."""

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


def _read_bert(settings: Settings) -> Settings:
    require(settings, position_embedding_type="absolute", is_decoder=False)
    require(settings, add_cross_attention=False)
    return {
        **_read_shared(settings),
        "norm_position": "post",
        "max_seq_len": settings["max_position_embeddings"],
        "positions": "learned",
        "embedding_norm": True,
        "token_types": settings.get("type_vocab_size", 2),
        "tie_embeddings": settings.get("tie_word_embeddings", True),
    }


def _read_shared(settings: Settings) -> Settings:
    """The settings that BERT and ViT share."""
    return {
        "family": "encoder",
        "num_layers": settings["num_hidden_layers"],
        "d_model": settings["hidden_size"],
        "num_heads": settings["num_attention_heads"],
        "d_ff": settings["intermediate_size"],
        "norm": "layernorm",
        "norm_eps": settings.get("layer_norm_eps", 1e-12),
        "activation": activation(settings, "hidden_act", "gelu", PLAIN),
        "bias": True,
        "dropout": settings.get("hidden_dropout_prob", 0.0),
    }


def _write_shared(config: ModelConfig) -> Settings:
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": hf_activation(config.activation, PLAIN),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _fits_shared(config: ModelConfig, norm_position: str, patches: bool) -> bool:
    return (
        (config.family, config.norm, config.norm_position, config.positions, config.bias)
        == ("encoder", "layernorm", norm_position, "learned", True)
        and not config.is_gated
        and has_plain_heads(config)
        and (config.patches is not None) == patches
    )


def _split_bert(hf_weights: Weights) -> Weights:
    weights = dict(hf_weights)
    alias = "cls.predictions.decoder.bias"  # a second name of the same tensor
    if alias in weights:
        weights.setdefault("cls.predictions.bias", weights.pop(alias))
    return weights


BERT = Layout(
    model_type="bert",
    classes={
        "tokens": "BertForMaskedLM",
        "label": "BertForSequenceClassification",
        "each_token": "BertForTokenClassification",
        "span": "BertForQuestionAnswering",
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
        "span": {"head": "qa_outputs"},
    },
    read=_read_bert,
    write=lambda config: {
        **_write_shared(config),
        "max_position_embeddings": config.max_seq_len,
        "type_vocab_size": config.token_types,
    },
    fits=lambda config: (
        _fits_shared(config, "post", patches=False)
        and config.embedding_norm
        and config.token_types > 0
    ),
    split=_split_bert,
    more_classes=("BertForPreTraining", "BertLMHeadModel"),
    ignored=r"bert\.pooler\..*|.*\.position_ids",
)


def _read_vit(settings: Settings) -> Settings:
    image, patch = settings.get("image_size", 224), settings.get("patch_size", 16)
    if not isinstance(image, int) or not isinstance(patch, int):
        raise ValueError("image_size and patch_size must be whole numbers: only squares work")
    count = (image // patch) ** 2
    channels = settings.get("num_channels", 3)
    return {
        **_read_shared(settings),
        "norm_position": "pre",
        "max_seq_len": max(2, count + 1),
        "positions": "learned",
        "patches": {"image_size": image, "patch_size": patch, "channels": channels},
    }


def _write_vit(config: ModelConfig) -> Settings:
    assert config.patches is not None
    return {
        **_write_shared(config),
        "image_size": config.patches.image_size,
        "patch_size": config.patches.patch_size,
        "num_channels": config.patches.channels,
        "qkv_bias": True,
    }


# Bare parameters, of the shape (1, tokens, D) in ViT.
VIT_PARAMETERS = ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings")
QKV_BIASES = tuple(f".attention.{part}.bias" for part in ("query", "key", "value"))


def _fuse_vit(weights: Weights) -> Weights:
    return {
        name: tensor.reshape(1, -1, tensor.shape[-1]) if name in VIT_PARAMETERS else tensor
        for name, tensor in weights.items()
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
        _fits_shared(config, "pre", patches=True)
        and not (config.embedding_norm or config.token_types)
    ),
    lacks_bias=lambda settings, name: (
        not settings.get("qkv_bias", True) and name.endswith(QKV_BIASES)
    ),
    fuse=_fuse_vit,
    ignored=r"vit\.pooler\..*",
)
