"""Matches the weights of a folder to the parameters of a model: which are missing, which stay new,
and which are not used."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orchestrator.model.hf.heads import Outputs, match_rows, reorder_outputs
from orchestrator.model.hf.layout import Head, Layout, Settings, Weights
from orchestrator.model.hf.layouts import layout_of_settings
from orchestrator.model.transformer import Transformer

NO_OUTPUTS = Outputs()
WRAPPERS = ("module.", "_orig_mod.")  # prefixes by DistributedDataParallel and torch.compile
OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")  # TensorFlow's names
BUFFERS = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|rotary_emb\.inv_freq|num_batches_tracked)"
)
POSITION_TABLE = ".positions.learned.weight"


@dataclass
class Match:
    """The weights that a folder has for a model."""

    weights: Weights  # by the model's parameter names
    new: list[str] = field(
        default_factory=list
    )  # parameters of the head that are not in the folder
    new_reason: str = ""  # why the folder's head does not fit, if it has one
    unused: list[str] = field(default_factory=list)  # tensors of the folder with no parameter
    label_order: list[str] = field(default_factory=list)  # the folder's labels, if it differs
    tied: tuple[str, str] | None = None  # embedding and head, if the file has both for one tensor


@dataclass
class _Source:
    """The tensors of a folder, by the names of its architecture and split as the model's are."""

    layout: Layout
    settings: Settings
    weights: Weights
    used: set[str] = field(default_factory=set)

    def take(self, name: str | None) -> Tensor | None:
        """The tensor of that name, which then counts as used; None if there is no such tensor."""
        value = self.weights.get(name) if name is not None else None
        if value is not None and name is not None:
            self.used.add(name)
        return value

    def has_head(self, head: Head) -> bool:
        """Whether the model class that the folder's config names has this head."""
        architectures = self.settings.get("architectures")
        classes = {self.layout.classes.get(head)}
        classes |= set(self.layout.more_classes) if head == "tokens" else set()
        return isinstance(architectures, list) and bool(classes & set(map(str, architectures)))

    def unused(self) -> list[str]:
        """The weights that no parameter used, by their names in the file."""
        ignored = re.compile(self.layout.ignored)
        left = [n for n in self.weights if not (n in self.used or is_buffer(n))]
        in_file = (self.layout.name_in_file(n) for n in left if not ignored.fullmatch(n))
        return list(dict.fromkeys(in_file))


def match(
    model: Transformer, settings: Settings, weights: Weights, outputs: Outputs = NO_OUTPUTS
) -> Match:
    """Match the weights of a folder, with its config.json, to the parameters of a model.

    The tensors may be on torch's meta device. A head that the folder lacks, or that has other
    labels, stays new.

    Raises:
        ValueError: if the architecture is not supported, or a weight is missing or has another
            shape.
    """
    layout = layout_of_settings(settings)
    names = _architecture_names(list(weights), layout)
    renamed = {names[name]: tensor for name, tensor in weights.items()}
    tied = _untie(model, layout, renamed)
    source = _Source(layout, settings, layout.split(renamed))
    result = Match(_match_body(model, source))
    if tied is not None:
        file_names = {new: old for old, new in names.items()}
        result.tied = file_names[tied[0]], file_names[tied[1]]
    _match_head(result, model, source, outputs)
    result.unused = source.unused()
    return result


def is_buffer(name: str) -> bool:
    """Whether a tensor of a file is a buffer, not a weight."""
    return BUFFERS.fullmatch(name) is not None


def hf_name(name: str, layout: Layout, head: Head) -> str | None:
    """The architecture's name of a model's parameter; None if the architecture has no such one."""
    if layout.names is None:
        return name
    number = re.search(r"\.blocks\.(\d+)\.", name)
    template = re.sub(r"\.blocks\.\d+\.", ".blocks.{i}.", name)
    names = {**layout.names, **layout.heads.get(head, {})}
    result = names.get(template)
    if result is None:
        module, _, kind = template.rpartition(".")
        result = names.get(module)
        result = f"{result}.{kind}" if result is not None else None
    if result is None:
        return None
    return result.replace("{i}", number[1]) if number else result


def _architecture_names(file_names: list[str], layout: Layout) -> dict[str, str]:
    """From each name in a file to the architecture's own name for the tensor."""
    names = {name: name for name in file_names}
    while wrapper := next((w for w in WRAPPERS if _all_start_with(names, w)), None):
        names = {name: renamed.removeprefix(wrapper) for name, renamed in names.items()}
    norm_names = {"gamma": "weight", "beta": "bias"}
    for name, renamed in names.items():
        names[name] = OLD_NORM.sub(lambda old: f"LayerNorm.{norm_names[old[1]]}", renamed)
    if any(renamed.startswith(layout.prefix) for renamed in names.values()):
        return names
    # A body that was saved without a head has names without the prefix. Heads never have it.
    heads = {
        name.partition(".")[0]
        for part in layout.heads.values()
        for name in part.values()
        if not name.startswith(layout.prefix)
    }
    return {
        name: renamed if renamed.partition(".")[0] in heads else layout.prefix + renamed
        for name, renamed in names.items()
    }


def _all_start_with(names: dict[str, str], prefix: str) -> bool:
    return bool(names) and all(renamed.startswith(prefix) for renamed in names.values())


def _untie(model: Transformer, layout: Layout, weights: Weights) -> tuple[str, str] | None:
    """Remove the head's weight from `weights` if the model uses its embedding as the head.

    If only the head is in the file, it becomes the embedding. If both are, returns their names.
    """
    embedding = hf_name("tokens.weight", layout, "tokens")
    head = hf_name("head.logits.weight", layout, "tokens")
    has_both_names = layout.names is not None and embedding is not None and head is not None
    if not model.config.tie_embeddings or not has_both_names or head not in weights:
        return None
    assert embedding is not None and head is not None
    value = weights.pop(head)
    if embedding in weights:
        return embedding, head
    weights[embedding] = value
    return None


def _match_body(model: Transformer, source: _Source) -> Weights:
    """All parameters except the head's.

    Raises:
        ValueError: if one is missing or has another shape.
    """
    layout, settings = source.layout, source.settings
    longest = layout.read(settings).get("max_seq_len")
    weights: Weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            continue
        source_name = hf_name(name, layout, model.head_kind)
        value = source.take(source_name)
        if value is None and name.endswith(".bias") and layout.lacks_bias(settings, name):
            weights[name] = torch.zeros_like(tensor)
            continue
        if value is None:
            raise ValueError(f"{source_name or name} is missing")
        if name.endswith(POSITION_TABLE) and value.ndim >= 2 and value.shape[-2] == longest:
            value = value[..., : len(tensor), :]  # model.max_seq_len may be smaller
        weights[name] = _reshaped(value, tensor, str(source_name), name)
    return weights


def _match_head(result: Match, model: Transformer, source: _Source, outputs: Outputs) -> None:
    """Add the head's parameters to `result`.

    Raises:
        ValueError: if the folder's model class has the head, but the files do not.
    """
    head = _head_of(model, source, outputs)
    parameters = {n: t for n, t in model.state_dict().items() if n.startswith("head.")}
    names = {name: hf_name(name, source.layout, head) for name in parameters}
    taken = {name: source.take(source_name) for name, source_name in names.items()}
    weights = {name: tensor for name, tensor in taken.items() if tensor is not None}
    missing = [name for name in parameters if name not in weights]
    if missing and source.has_head(head):
        raise ValueError(f"{names[missing[0]] or missing[0]} is missing")
    rows: list[int] | str = ""
    if not missing:
        rows = [] if head == "tokens" else _match_outputs(model, source, outputs, head, weights)
    if isinstance(rows, str):
        result.new_reason = rows
        weights = {n: t for n, t in weights.items() if _is_of_body(str(names[n]), source.layout)}
    elif rows:
        if rows != sorted(rows) and outputs.labels is not None:
            result.label_order = [outputs.labels[rows.index(row)] for row in range(len(rows))]
        weights = reorder_outputs(weights, rows, outputs)
    for name, value in weights.items():
        result.weights[name] = _reshaped(value, parameters[name], str(names[name]), name)
    result.new = [name for name in parameters if name not in weights]


def _is_of_body(source_name: str, layout: Layout) -> bool:
    """Whether a weight of the head belongs to the architecture's body, as BERT's pooler does. It
    is kept even if the head stays new."""
    return bool(layout.prefix) and source_name.startswith(layout.prefix)


def _head_of(model: Transformer, source: _Source, outputs: Outputs) -> Head:
    """The architecture's head that the model's head is: a span head if the folder has one."""
    heads = source.layout.heads
    if model.head_kind == "each_token" and outputs.is_span and "span" in heads:
        has_weight = f"{heads['span']['head']}.weight" in source.weights
        return "span" if has_weight or source.has_head("span") else "each_token"
    return model.head_kind


def _match_outputs(
    model: Transformer, source: _Source, outputs: Outputs, head: Head, weights: Weights
) -> list[int] | str:
    """For each of the model's outputs the row of the folder's head, or the reason why the head does
    not fit."""
    if head == "span":
        return [0, 1]
    if head == "label" and (problem := source.layout.head_problem(source.settings)):
        return problem
    if outputs.labels is not None and len(outputs.labels) != model.num_outputs:
        outputs = NO_OUTPUTS  # these labels belong to another kind of task
    logits = weights["head.logits.weight" if head == "label" else "head.weight"]
    rows = match_rows(outputs, source.settings, len(logits))
    if not isinstance(rows, str) and len(rows) != model.num_outputs:
        return f"it has {len(rows)} outputs, this model {model.num_outputs}"
    return rows


def _reshaped(value: Tensor, parameter: Tensor, source_name: str, name: str) -> Tensor:
    """A folder's tensor in the shape of the parameter. Only axes of length 1 may differ.

    Raises:
        ValueError: if other axes differ.
    """
    if [n for n in value.shape if n != 1] == [n for n in parameter.shape if n != 1]:
        value = value.reshape(parameter.shape)
    if value.shape != parameter.shape:
        raise ValueError(
            f"{source_name} has the shape {list(value.shape)}, the model's {name} "
            f"{list(parameter.shape)}"
        )
    return value
