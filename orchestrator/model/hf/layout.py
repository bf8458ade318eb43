"""What there is to say of an architecture of Hugging Face's, and what several of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import HeadKind

# `span` is `each_token` with two outputs: where a piece of a text starts, and where it ends.
Head = HeadKind | Literal["span"]
Settings = dict[str, Any]  # what a config.json holds
Weights = dict[str, Tensor]


# Their names of activations, by what is done to one map, or to the gate of two.
PLAIN = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
PLAIN |= {"relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}


@dataclass(frozen=True)
class Layout:
    """One of Hugging Face's architectures, or our own."""

    model_type: str
    classes: Mapping[Head, str]  # the class to load it with, by head
    prefix: str  # of the body's names in a model with a head; a body alone may lack it
    # Modules and parameters, ours to theirs; {i} is a block's number. None: they have our names.
    names: Mapping[str, str] | None
    read: Callable[[Settings], Settings]  # their config into values of ModelConfig
    write: Callable[[ModelConfig], Settings]
    fits: Callable[[ModelConfig], bool]  # whether a model of ours is one of these
    heads: Mapping[Head, Mapping[str, str]]  # more names
    split: Callable[[Weights], Weights] = dict  # their tensors as ours are cut, and back
    fuse: Callable[[Weights], Weights] = dict
    name_in_file: Callable[[str], str] = lambda name: name  # of a tensor that `split` has cut
    # Whether a map of ours has no bias by this config, and so one of zeros here.
    lacks_bias: Callable[[Settings, str], bool] = lambda settings, name: False
    head_problem: Callable[[Settings], str] = lambda settings: ""  # why a label head is of no use
    more_classes: tuple[str, ...] = ()  # that have a head for tokens, too
    ignored: str = r"$^"  # what files hold besides weights, or for a model of another kind: a regex


def has_plain_heads(config: ModelConfig) -> bool:
    """Whether the heads share the width among them, each with keys and values of its own."""
    return config.head_dim is None and config.kv_heads == config.num_heads


def require(settings: Settings, **wanted: Any) -> None:
    """Refuse a setting that changes what the model computes in a way that ours does not know."""
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} = {settings[name]!r} is not supported")


def activation(settings: Settings, name: str, default: str, known: Mapping[str, str]) -> str:
    theirs = settings.get(name, default)
    if theirs not in known:
        raise ValueError(f"{name} = {theirs!r} is not supported; {', '.join(known)} are")
    return known[theirs]


def their_activation(ours: str, known: Mapping[str, str]) -> str:
    return next(theirs for theirs, name in known.items() if name == ours)
