"""Reading and writing Hugging Face's architectures that this Transformer can be.

Each architecture is a `Layout`, in the file of its family: it translates config.json and the names
of the weights. A model that is none of these architectures has the layout `OWN`. `match` maps the
weights of a folder to the parameters of a model.
"""

from typing import Any

from orchestrator.model.config import ModelConfig
from orchestrator.model.hf.heads import SPAN, Outputs, in_data_units
from orchestrator.model.hf.layout import Head, Layout, Settings, Weights
from orchestrator.model.hf.layouts import LAYOUTS, OWN, layout_of_settings
from orchestrator.model.hf.match import NO_OUTPUTS, Match, hf_name, is_buffer, match
from orchestrator.model.transformer import Transformer

__all__ = [
    "NO_OUTPUTS",
    "SPAN",
    "Match",
    "Outputs",
    "export_config",
    "export_weights",
    "exported_head",
    "is_buffer",
    "match",
    "read_config",
]


def read_config(settings: Settings) -> ModelConfig:
    """The architecture that a config.json describes.

    Raises:
        ValueError: if this Transformer does not support it, or a setting is missing or invalid.
    """
    layout = layout_of_settings(settings)
    if settings.get("quantization_config"):
        quantization = settings["quantization_config"]
        is_named = isinstance(quantization, dict)
        method = quantization.get("quant_method") if is_named else quantization
        raise ValueError(f"quantization_config: quantised weights ({method}) are not supported")
    try:
        return ModelConfig(**layout.read(settings))
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None
    except (TypeError, AttributeError) as error:  # a value of another type
        raise ValueError(f"invalid setting: {error}") from None


def has_architecture(config: ModelConfig) -> bool:
    """Whether Hugging Face has an architecture for such a model."""
    return _layout_of(config) is not OWN


def exported_head(model: Transformer, outputs: Outputs = NO_OUTPUTS) -> Head:
    """The head that Hugging Face's class has: `span` instead of `each_token`, if there is one."""
    is_span = model.head_kind == "each_token" and outputs.is_span
    return "span" if is_span and "span" in _layout_of(model.config).classes else model.head_kind


def export_config(model: Transformer, outputs: Outputs = NO_OUTPUTS, **more: Any) -> Settings:
    """The content of config.json. `more` is added: ids of special tokens, for example."""
    layout, head = _layout_of(model.config), exported_head(model, outputs)
    settings = layout.write(model.config)
    if head in ("label", "each_token"):
        names = outputs.labels or [f"LABEL_{i}" for i in range(model.num_outputs)]
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    if head == "label" and outputs.scale is not None:
        settings["problem_type"] = "regression"
    return {
        "architectures": [layout.classes[head]],
        "model_type": layout.model_type,
        **({"vocab_size": model.vocab_size} if model.tokens is not None else {}),
        "tie_word_embeddings": model.config.tie_embeddings,
        "dtype": "float32",
        **settings,
        **more,
    }


def export_weights(model: Transformer, outputs: Outputs = NO_OUTPUTS) -> Weights:
    """The content of model.safetensors: float32, on the CPU, outputs in units of the data."""
    layout, head = _layout_of(model.config), exported_head(model, outputs)
    weights: Weights = {}
    for name, tensor in in_data_units(model.state_dict(), outputs).items():
        name_in_file = hf_name(name, layout, head)
        assert name_in_file is not None, name
        weights[name_in_file] = tensor.detach().float().cpu()
    return {name: tensor.contiguous() for name, tensor in layout.fuse(weights).items()}


def _layout_of(config: ModelConfig) -> Layout:
    return next((layout for layout in LAYOUTS if layout.fits(config)), OWN)
