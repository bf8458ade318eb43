"""`Layout`: how one of Hugging Face's architectures translates to this Transformer and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import HeadKind

# `span` is `each_token` with two outputs: the start and the end of a span of tokens.
Head = HeadKind | Literal["span"]
Settings = dict[str, Any]  # the content of a config.json
Weights = dict[str, Tensor]  # by name

# From Hugging Face's names of activations to this Transformer's, without a gate and with one.
PLAIN = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
PLAIN |= {"relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}


@dataclass(frozen=True)
class Layout:
    """One of Hugging Face's architectures, or this package's own."""

    model_type: str
    classes: Mapping[Head, str]  # the class that loads it, by head
    prefix: str  # of the body's names in a model with a head; a body saved alone may lack it
    # From this Transformer's names of modules and parameters to the architecture's; {i} is the
    # number of a block. None: the names are the same.
    names: Mapping[str, str] | None
    read: Callable[[Settings], Settings]  # from config.json to the values of a ModelConfig
    write: Callable[[ModelConfig], Settings]  # and back
    fits: Callable[[ModelConfig], bool]  # whether the architecture can be such a model
    heads: Mapping[Head, Mapping[str, str]]  # more names
    split: Callable[[Weights], Weights] = dict  # fused tensors into this model's
    fuse: Callable[[Weights], Weights] = dict  # and back
    name_in_file: Callable[[str], str] = lambda name: name  # of a split tensor
    # Whether the config leaves out the bias of that name. This Transformer then has zeros.
    lacks_bias: Callable[[Settings, str], bool] = lambda settings, name: False
    head_problem: Callable[[Settings], str] = lambda settings: ""  # why a label head does not fit
    more_classes: tuple[str, ...] = ()  # further classes with a head for tokens
    ignored: str = r"$^"  # regex of tensors in files that are no weights of such a model


def has_plain_heads(config: ModelConfig) -> bool:
    """Whether the heads divide d_model among them, and each has its own keys and values."""
    return config.head_dim is None and config.kv_heads == config.num_heads


def require(settings: Settings, **expected: Any) -> None:
    """Refuse settings that change the computation in ways that this Transformer does not support.

    Raises:
        ValueError: if a setting is present and differs from the expected value.
    """
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} = {settings[name]!r} is not supported")


def activation(settings: Settings, name: str, default: str, known: Mapping[str, str]) -> str:
    """This Transformer's name of the activation in `settings`, by the table `known`.

    Raises:
        ValueError: if it is not in the table.
    """
    value = settings.get(name, default)
    if value not in known:
        raise ValueError(f"{name} = {value!r} is not supported; {', '.join(known)} are")
    return known[value]


def hf_activation(activation: str, known: Mapping[str, str]) -> str:
    """Hugging Face's name of one of this Transformer's activations: the first in the table."""
    return next(hf_name for hf_name, name in known.items() if name == activation)
