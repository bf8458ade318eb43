"""Hugging Face's architectures that are this Transformer, and their names for its parts.

Each is a `Layout`, in the file of its family: how its config translates, and what its modules are
called. A model that is none of theirs has a layout of its own, `OURS`.
"""

import re
from typing import Any

import torch

from orchestrator.model.config import ModelConfig
from orchestrator.model.hf.bart import BART, MBART
from orchestrator.model.hf.bert import BERT, VIT
from orchestrator.model.hf.gpt2 import GPT2
from orchestrator.model.hf.layout import Layout, Settings, Weights
from orchestrator.model.hf.llama import ARCEE, EUROBERT, LLAMA
from orchestrator.model.hf.t5 import T5
from orchestrator.model.transformer import HeadKind, Transformer

LAYOUTS = (LLAMA, ARCEE, EUROBERT, GPT2, BERT, VIT, T5, BART, MBART)

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
