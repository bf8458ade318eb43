"""Models in Hugging Face's layout, on any storage: config.json, safetensors and tokenizer.json.

A folder is looked at whole, by what its files say of themselves, before anything is started:
`check`. `load` fills a model, and `notices` says what of it does not come from there.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.model import hf
from orchestrator.model.config import ModelConfig
from orchestrator.model.hf import NO_OUTPUTS, Match, Outputs
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.tokenizer import CONFIG, TOKENIZER, read_tokenizer
from orchestrator.pretrained.weight_files import (
    ADAPTERS,
    FLOATS,
    INDEX,
    WEIGHTS,
    Entry,
    read_headers,
    read_tensor,
    read_weights,
    weight_names,
)
from orchestrator.processors.text import MASK, TextProcessor, TokenizerConfig
from orchestrator.storage.folder import Folder
from orchestrator.storage.json_object import read_object

SHOWN = 3  # names that a message lists


def read_config(folder: Folder) -> tuple[ModelConfig, int]:
    """The architecture of a model, and the size of its vocabulary: 0 where it reads images.

    Raises:
        UserError: where there is none, or none that this Transformer can be.
    """
    settings = _settings(folder)
    try:
        rows = settings.get("vocab_size", 0)
        if not isinstance(rows, int) or rows < 0:
            raise ValueError(f"vocab_size = {rows!r} is no number of tokens")
        return hf.read_config(settings), rows
    except ValueError as error:  # pydantic's too
        errors = getattr(error, "errors", None)
        reason = str(errors()[0]["msg"]).removeprefix("Value error, ") if errors else str(error)
        if errors and errors()[0]["loc"]:
            reason = f"{errors()[0]['loc'][-1]}: {reason}"
        raise UserError(f"{folder}/{CONFIG}: {reason}") from None


def fit_text(
    texts: Iterable[str],
    tokenizer: TokenizerConfig,
    model: ModelConfig,
    special: tuple[str, ...] = (),
    prefix_space: bool = False,
) -> TextProcessor:
    """A tokenizer: the one of the model's weights where it begins with some, else a new one, by
    `TextProcessor.fit`.

    Raises:
        UserError: where there is none beside those weights, or it cannot be used.
    """
    if model.init_from is None:
        return TextProcessor.fit(texts, tokenizer, special, prefix_space)
    folder = Folder(model.init_from)
    processor = read_tokenizer(folder, read_config(folder)[1])
    if MASK in special and processor.mask_token is None:
        raise UserError(f"{folder}/{TOKENIZER}: has no mask token, which this task needs")
    return processor


def check(
    model: ModelConfig, build: Callable[[int, int], Transformer], outputs: Outputs = NO_OUTPUTS
) -> None:
    """Look at all that `model.init_from` names: every file is there and whole, every weight that
    the model needs has its shape, and the tokenizer belongs to them.

    Args:
        build: makes the model, for a size of the vocabulary and a number of outputs.
        outputs: as far as they are known before the data is prepared.

    Raises:
        UserError: naming the file, and what to do.
    """
    assert model.init_from is not None
    folder = Folder(model.init_from)
    _, rows = read_config(folder)
    with torch.device("meta"):
        empty = build(rows, 1)
    _match_headers(empty, folder, outputs)
    if empty.tokens is not None:
        hides = (MASK,) if (empty.head_kind, model.family) == ("tokens", "encoder") else ()
        fit_text([], TokenizerConfig(), model, hides)


def load(model: Transformer, folder: Folder, outputs: Outputs = NO_OUTPUTS) -> list[str]:
    """Fill a model with the weights in a folder; returns the names of what stays as it was.

    Raises:
        UserError: where the weights cannot be read, or are not the model's.
    """
    found = _match(model, folder, read_weights(folder), outputs)
    model.load_state_dict({**model.state_dict(), **found.found})
    return found.new


def notices(model: Transformer, folder: Folder, outputs: Outputs) -> list[str]:
    """What of a model, which may be on torch's meta device, does not come from a folder as it lies
    there; a line each.

    Raises: see `load`.
    """
    found = _match_headers(model, folder, outputs)
    told: list[str] = []
    if found.new:
        modules = dict.fromkeys(
            name.removesuffix(".weight").removesuffix(".bias") for name in found.new
        )
        reason = f" ({found.why_new})" if found.why_new else ""
        told.append(
            f"model.init_from has no head for this task{reason}: {', '.join(modules)} begin at "
            f"random"
        )
    if found.order:
        order = ", ".join(found.order[:SHOWN]) + ("…" if len(found.order) > SHOWN else "")
        told.append(
            f"the labels of model.init_from stand in another order ({order}): its head is taken by "
            f"their names"
        )
    if found.unused:
        told.append(
            f"model.init_from holds weights for which this model has no place: "
            f"{_listed(found.unused)}"
        )
    if found.tied is not None:
        embedding, head = (read_tensor(folder, name) for name in found.tied)
        if not torch.equal(embedding, head):
            told.append(
                f"model.init_from holds {found.tied[1]} with other values than {found.tied[0]}, "
                f"though tie_word_embeddings says that they are one: the latter is used for both"
            )
    return told


def save(model: Transformer, folder: Folder, outputs: Outputs = NO_OUTPUTS, **more: Any) -> None:
    """Write a model as `from_pretrained` loads it or, where no architecture of Hugging Face's is
    this model, as `load` alone does. `more` goes into its config.

    Raises:
        UserError: where a weight does not fit float32.
    """
    weights = hf.export_weights(model, outputs)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{name} does not fit float32 in the units of the data: {outputs.scale}"
            )
    settings = hf.export_config(model, outputs, **more)
    folder.write(CONFIG, json.dumps(settings, indent=2, ensure_ascii=False).encode())
    folder.write(WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))


def _match(
    model: Transformer, folder: Folder, weights: dict[str, Tensor], outputs: Outputs
) -> Match:
    try:
        return hf.match(model, _settings(folder), weights, outputs)
    except ValueError as error:
        names = weight_names(folder)
        file = WEIGHTS if names == [WEIGHTS] else INDEX
        raise UserError(f"{folder}/{file}: {error}") from None


def _match_headers(model: Transformer, folder: Folder, outputs: Outputs) -> Match:
    entries = read_headers(folder)
    for name, entry in entries.items():
        _check_type(folder, name, entry)
    shapes = {name: torch.empty(entry.shape, device="meta") for name, entry in entries.items()}
    return _match(model, folder, shapes, outputs)


def _check_type(folder: Folder, name: str, entry: Entry) -> None:
    if entry.dtype not in FLOATS and not hf.is_buffer(name):
        raise UserError(
            f"{folder}/{entry.file}: {name} is {entry.dtype}: quantised weights are not supported"
        )


def _settings(folder: Folder) -> dict[str, Any]:
    try:
        return read_object(folder, CONFIG)
    except FileNotFoundError:
        found = next((name for name in ADAPTERS if folder.exists(name)), None)
        held = f", but {found}: an adapter (LoRA, say) is no whole model" if found else ""
        raise UserError(
            f"{folder} holds no {CONFIG}: no model in Hugging Face's layout{held}"
        ) from None


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
