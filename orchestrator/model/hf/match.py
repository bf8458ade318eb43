"""Which of their tensors becomes which of a model's: what is missing, what is new, what is left."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orchestrator.model.hf.heads import Outputs, exchanged, rows_by_name
from orchestrator.model.hf.layout import Head, Layout, Settings, Weights
from orchestrator.model.hf.layouts import layout_of_settings
from orchestrator.model.transformer import Transformer

NO_OUTPUTS = Outputs()
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel's and torch.compile's modules
OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")  # names of TensorFlow's
BUFFERS = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|rotary_emb\.inv_freq|num_batches_tracked)"
)
TABLE = ".positions.learned.weight"


@dataclass
class Match:
    """What a model begins with."""

    found: Weights  # by our names
    new: list[str] = field(default_factory=list)  # ours that stay as they were
    why_new: str = ""  # where their head is there, and of no use
    unused: list[str] = field(default_factory=list)  # weights of theirs that have no place
    order: list[str] = field(default_factory=list)  # their labels, where ours stand in another
    tied: tuple[str, str] | None = None  # a head of theirs beside the embedding that is used for it


@dataclass
class _Theirs:
    """The tensors of a folder by the names of its architecture, cut as ours are."""

    layout: Layout
    settings: Settings
    weights: Weights
    taken: set[str] = field(default_factory=set)

    def take(self, name: str | None) -> Tensor | None:
        value = self.weights.get(name) if name is not None else None
        if value is not None and name is not None:
            self.taken.add(name)
        return value

    def has_head(self, head: Head) -> bool:
        """Whether the class that the folder names has this head."""
        said = self.settings.get("architectures")
        classes = {self.layout.classes.get(head)}
        classes |= set(self.layout.more_classes) if head == "tokens" else set()
        return isinstance(said, list) and bool(classes & set(map(str, said)))

    def left(self) -> list[str]:
        """Weights that nothing has taken."""
        ignored = re.compile(self.layout.ignored)
        left = [n for n in self.weights if not (n in self.taken or is_buffer(n))]
        in_file = (self.layout.name_in_file(n) for n in left if not ignored.fullmatch(n))
        return list(dict.fromkeys(in_file))


def match(
    model: Transformer, settings: Settings, weights: Weights, outputs: Outputs = NO_OUTPUTS
) -> Match:
    """Find the weights of a model in those of a folder. Tensors without values do, too.

    A head that those weights have none of, or one for other labels, stays new.

    Raises:
        ValueError: where a weight is missing or has another shape.
    """
    layout = layout_of_settings(settings)
    names = _their_names(list(weights), layout)
    named = {names[name]: tensor for name, tensor in weights.items()}
    tied = _untie(model, layout, named)
    theirs = _Theirs(layout, settings, layout.split(named))
    result = Match(_body(model, theirs))
    if tied is not None:
        originals = {new: old for old, new in names.items()}
        result.tied = originals[tied[0]], originals[tied[1]]
    _add_head(result, model, theirs, outputs)
    result.unused = theirs.left()
    return result


def is_buffer(name: str) -> bool:
    """Whether a tensor is none of a model's weights."""
    return BUFFERS.fullmatch(name) is not None


def name_of(name: str, layout: Layout, head: Head) -> str | None:
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


def _their_names(found: list[str], layout: Layout) -> dict[str, str]:
    """The names that a file has, and those that the architecture gives the same tensors."""
    names = {name: name for name in found}
    while wrapper := next((w for w in WRAPPERS if _all_begin(names, w)), None):
        names = {name: plain.removeprefix(wrapper) for name, plain in names.items()}
    weight = {"gamma": "weight", "beta": "bias"}
    for name, plain in names.items():
        names[name] = OLD_NORM.sub(lambda found: f"LayerNorm.{weight[found[1]]}", plain)
    if any(plain.startswith(layout.prefix) for plain in names.values()):
        return names
    # A body that was saved alone has names without its prefix; a head beside it has none anyway.
    heads = {
        name.partition(".")[0]
        for part in layout.heads.values()
        for name in part.values()
        if not name.startswith(layout.prefix)
    }
    return {
        name: plain if plain.partition(".")[0] in heads else layout.prefix + plain
        for name, plain in names.items()
    }


def _all_begin(names: dict[str, str], prefix: str) -> bool:
    return bool(names) and all(plain.startswith(prefix) for plain in names.values())


def _untie(model: Transformer, layout: Layout, theirs: Weights) -> tuple[str, str] | None:
    """Take the head's weight out of a file where the embedding is the head; returns the names of
    both where both are there."""
    embedding = name_of("tokens.weight", layout, "tokens")
    head = name_of("head.logits.weight", layout, "tokens")
    is_theirs = layout.names is not None and embedding is not None and head is not None
    if not model.config.tie_embeddings or not is_theirs or head not in theirs:
        return None
    assert embedding is not None and head is not None
    value = theirs.pop(head)
    if embedding in theirs:
        return embedding, head
    theirs[embedding] = value  # saved in its place
    return None


def _body(model: Transformer, theirs: _Theirs) -> Weights:
    """All parameters but the head's.

    Raises:
        ValueError: where one is missing or has another shape.
    """
    layout, settings = theirs.layout, theirs.settings
    longest = layout.read(settings).get("max_seq_len")
    found: Weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            continue
        their_name = name_of(name, layout, model.head_kind)
        value = theirs.take(their_name)
        if value is None and name.endswith(".bias") and layout.lacks_bias(settings, name):
            found[name] = torch.zeros_like(tensor)
            continue
        if value is None:
            raise ValueError(f"there is no {their_name or name}")
        if name.endswith(TABLE) and value.ndim >= 2 and value.shape[-2] == longest:
            value = value[..., : len(tensor), :]  # model.max_seq_len may be less than theirs
        found[name] = _fitted(value, tensor, str(their_name), name)
    return found


def _add_head(result: Match, model: Transformer, theirs: _Theirs, outputs: Outputs) -> None:
    """The head's parameters.

    Raises:
        ValueError: where the folder's own architecture has the head, and its files do not.
    """
    head = _head_of(model, theirs, outputs)
    wanted = {n: t for n, t in model.state_dict().items() if n.startswith("head.")}
    names = {name: name_of(name, theirs.layout, head) for name in wanted}
    taken = {name: theirs.take(their_name) for name, their_name in names.items()}
    there = {name: tensor for name, tensor in taken.items() if tensor is not None}
    missing = [name for name in wanted if name not in there]
    if missing and theirs.has_head(head):
        raise ValueError(f"there is no {names[missing[0]] or missing[0]}")
    use: list[int] | str = ""
    if not missing:
        use = [] if head == "tokens" else _use_of_head(model, theirs, outputs, head, there)
    if isinstance(use, str):
        result.why_new = use
        there = {n: t for n, t in there.items() if _is_of_body(str(names[n]), theirs.layout)}
    elif use:
        if use != sorted(use) and outputs.labels is not None:
            result.order = [outputs.labels[use.index(row)] for row in range(len(use))]
        there = exchanged(there, use, outputs)
    for name, value in there.items():
        result.found[name] = _fitted(value, wanted[name], str(names[name]), name)
    result.new = [name for name in wanted if name not in there]


def _is_of_body(their_name: str, layout: Layout) -> bool:
    """BERT's pooler belongs to its body: it is kept whatever becomes of the head."""
    return bool(layout.prefix) and their_name.startswith(layout.prefix)


def _head_of(model: Transformer, theirs: _Theirs, outputs: Outputs) -> Head:
    heads = theirs.layout.heads
    if model.head_kind == "each_token" and outputs.is_span and "span" in heads:
        is_there = f"{heads['span']['head']}.weight" in theirs.weights
        return "span" if is_there or theirs.has_head("span") else "each_token"
    return model.head_kind


def _use_of_head(
    model: Transformer, theirs: _Theirs, outputs: Outputs, head: Head, there: Weights
) -> list[int] | str:
    """The row of their head for each output; or why it is of no use, in words."""
    if head == "span":
        return [0, 1]
    if head == "label" and (problem := theirs.layout.head_problem(theirs.settings)):
        return problem
    if outputs.labels is not None and len(outputs.labels) != model.num_outputs:
        outputs = NO_OUTPUTS  # of a task of another kind
    logits = there["head.logits.weight" if head == "label" else "head.weight"]
    use = rows_by_name(outputs, theirs.settings, len(logits))
    if not isinstance(use, str) and len(use) != model.num_outputs:
        return f"it has {len(use)} outputs, this one {model.num_outputs}"
    return use


def _fitted(value: Tensor, tensor: Tensor, their_name: str, name: str) -> Tensor:
    """Their tensor in our shape. Axes of length 1 are theirs to have."""
    if [n for n in value.shape if n != 1] == [n for n in tensor.shape if n != 1]:
        value = value.reshape(tensor.shape)
    if value.shape != tensor.shape:
        raise ValueError(
            f"{their_name} has the shape {list(value.shape)}, the model's {name} "
            f"{list(tensor.shape)}"
        )
    return value
