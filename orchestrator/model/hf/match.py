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


def match(
    model: Transformer, settings: Settings, weights: Weights, outputs: Outputs = NO_OUTPUTS
) -> Match:
    """Find the weights of a model in those of a folder. Tensors without values do, too.

    A head that those weights have none of, or one for other labels, stays new.

    Raises:
        ValueError: where a weight is missing or has another shape.
    """
    layout = layout_of_settings(settings)
    named = _with_their_names(weights, layout)
    tied = _tied_head(model, layout, named)
    embedding = name_of("tokens.weight", layout, "tokens")
    pair = None
    if tied is not None:
        value = named.pop(tied)
        if embedding is not None and embedding in named:
            originals = {new: old for old, new in _their_names(list(weights), layout).items()}
            pair = originals[embedding], originals[tied]
        elif embedding is not None:
            named[embedding] = value  # saved in its place
    theirs = layout.split(named)
    head = _head_of(model, layout, settings, outputs, theirs)
    taken: set[str] = set()
    found = _body(model, layout, settings, theirs, taken)
    result = Match(found, tied=pair)
    _add_head(result, model, layout, settings, outputs, head, theirs, taken)
    ignored = re.compile(layout.ignored)
    left = [n for n in theirs if n not in taken and not is_buffer(n) and not ignored.fullmatch(n)]
    spelt = (re.sub(r"\b[qkv]_attn\b", "c_attn", name) for name in left)  # GPT-2's, cut in three
    result.unused = list(dict.fromkeys(spelt))
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


def _with_their_names(weights: Weights, layout: Layout) -> Weights:
    names = _their_names(list(weights), layout)
    return {names[name]: tensor for name, tensor in weights.items()}


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


def _tied_head(model: Transformer, layout: Layout, theirs: Weights) -> str | None:
    """The name of a head's weight in a file of a model whose head is its embedding."""
    if not model.config.tie_embeddings or layout.names is None:
        return None
    name = layout.heads.get("tokens", {}).get("head.logits")
    return f"{name}.weight" if f"{name}.weight" in theirs else None


def _head_of(
    model: Transformer, layout: Layout, settings: Settings, outputs: Outputs, theirs: Weights
) -> Head:
    if model.head_kind == "each_token" and outputs.is_span and "span" in layout.heads:
        is_there = f"{layout.heads['span']['head']}.weight" in theirs
        return "span" if is_there or _has_head(layout, settings, "span") else "each_token"
    return model.head_kind


def _body(
    model: Transformer, layout: Layout, settings: Settings, theirs: Weights, taken: set[str]
) -> Weights:
    """All parameters but the head's.

    Raises:
        ValueError: where one is missing or has another shape.
    """
    longest = layout.read(settings).get("max_seq_len")
    found: Weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            continue
        their_name = name_of(name, layout, model.head_kind)
        value = theirs.get(their_name) if their_name else None
        if value is None and name.endswith(".bias") and layout.lacks_bias(settings, name):
            found[name] = torch.zeros_like(tensor)
            continue
        if value is None or their_name is None:
            raise ValueError(f"there is no {their_name or name}")
        taken.add(their_name)
        if name.endswith(TABLE) and value.ndim >= 2 and value.shape[-2] == longest:
            value = value[..., : len(tensor), :]  # model.max_seq_len may be less than theirs
        found[name] = _fitted(value, tensor, their_name, name)
    return found


def _add_head(
    result: Match,
    model: Transformer,
    layout: Layout,
    settings: Settings,
    outputs: Outputs,
    head: Head,
    theirs: Weights,
    taken: set[str],
) -> None:
    """The head's parameters. Raises ValueError where their own architecture has the head, and the
    file does not."""
    wanted = {n: t for n, t in model.state_dict().items() if n.startswith("head.")}
    names = {name: name_of(name, layout, head) for name in wanted}
    missing = [name for name, theirs_is in names.items() if theirs_is not in theirs]
    if missing and _has_head(layout, settings, head):
        raise ValueError(f"there is no {names[missing[0]] or missing[0]}")
    there = {name: theirs[n] for name, n in names.items() if n is not None and n in theirs}
    taken |= {n for n in names.values() if n is not None and n in theirs}
    # BERT's pooler belongs to its body: it is there whatever the head is.
    pooler = {name for name, n in names.items() if n is not None and n.startswith(layout.prefix)}
    pooler &= set(there) if layout.prefix else set()
    use: list[int] | str = "" if set(missing) - pooler else []
    if head != "tokens" and use == []:
        use = _use_of_head(model, layout, settings, outputs, head, there)
    if isinstance(use, str):
        result.why_new = use
        there = {name: tensor for name, tensor in there.items() if name in pooler}
    elif head != "tokens":
        if use != sorted(use):
            result.order = [outputs.labels[use.index(i)] for i in range(len(use))]  # type: ignore[index]
        there = exchanged(there, use, outputs)
    for name, value in there.items():
        result.found[name] = _fitted(value, wanted[name], str(names[name]), name)
    result.new = [name for name in wanted if name not in there]


def _use_of_head(
    model: Transformer,
    layout: Layout,
    settings: Settings,
    outputs: Outputs,
    head: Head,
    there: Weights,
) -> list[int] | str:
    """The row of their head for each output; or why it is of no use, in words."""
    logits = there["head.logits.weight" if head == "label" else "head.weight"]
    if head == "label" and (problem := layout.head_problem(settings)):
        return problem
    if outputs.labels is not None and len(outputs.labels) != model.num_outputs:
        outputs = NO_OUTPUTS  # of a task of another kind
    if head == "span":
        return [0, 1]
    use = rows_by_name(outputs, settings, len(logits))
    if not isinstance(use, str) and len(use) != model.num_outputs:
        return f"it has {len(use)} outputs, this one {model.num_outputs}"
    return use


def _has_head(layout: Layout, settings: Settings, head: Head) -> bool:
    """Whether the class that a folder names has this head."""
    said = settings.get("architectures")
    classes = {layout.classes.get(head)} | (set(layout.more_classes) if head == "tokens" else set())
    return isinstance(said, list) and bool(classes & set(map(str, said)))


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
