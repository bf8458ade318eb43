"""Models in Hugging Face's layout, on any storage: config.json, safetensors and tokenizer.json.

`check` validates a whole folder from its file headers before a run starts. `load` fills a model
with the weights, and `notices` lists what of the model does not come from the folder.
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
    """The architecture of a model, and its vocabulary size: 0 for a model of images.

    Raises:
        UserError: if there is no config.json, or this Transformer does not support the model.
    """
    settings = _settings(folder)
    try:
        rows = settings.get("vocab_size", 0)
        if not isinstance(rows, int) or rows < 0:
            raise ValueError(f"vocab_size = {rows!r} is not a number of tokens")
        return hf.read_config(settings), rows
    except ValueError as error:  # pydantic's ValidationError is one too
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
    """The tokenizer of `model.init_from`, if that is set; else a new one by `TextProcessor.fit`.

    Raises:
        UserError: if the folder of `model.init_from` has no tokenizer, or an unsuitable one.
    """
    if model.init_from is None:
        return TextProcessor.fit(texts, tokenizer, special, prefix_space)
    folder = Folder(model.init_from)
    processor = read_tokenizer(folder, read_config(folder)[1])
    if MASK in special and processor.mask_token is None:
        raise UserError(f"{folder}/{TOKENIZER} has no mask token, which this task needs")
    return processor


def check(
    model: ModelConfig, build: Callable[[int, int], Transformer], outputs: Outputs = NO_OUTPUTS
) -> None:
    """Check the folder of `model.init_from`: no file is missing or cut off, every weight that the
    model needs has the right shape, and the tokenizer fits the model.

    Args:
        build: makes the model, from a vocabulary size and a number of outputs.
        outputs: what is known of the outputs before the data is prepared.

    Raises:
        UserError: if a check fails; the message names the file and what to do.
    """
    assert model.init_from is not None
    folder = Folder(model.init_from)
    _, rows = read_config(folder)
    with torch.device("meta"):
        empty = build(rows, 1)
    _match_headers(empty, folder, outputs)
    if empty.tokens is not None:
        is_masked = (empty.head_kind, model.family) == ("tokens", "encoder")
        fit_text([], TokenizerConfig(), model, special=(MASK,) if is_masked else ())


def load(model: Transformer, folder: Folder, outputs: Outputs = NO_OUTPUTS) -> list[str]:
    """Fill a model with the weights in a folder; returns the names of the parameters that are not
    in the folder and keep their values.

    Raises:
        UserError: if the weights cannot be read, or do not fit the model.
    """
    result = _match(model, folder, read_weights(folder), outputs)
    model.load_state_dict({**model.state_dict(), **result.weights})
    return result.new


def notices(model: Transformer, folder: Folder, outputs: Outputs) -> list[str]:
    """One line for each way in which `load` would not take the folder's weights as they are.

    The model may be on torch's meta device.

    Raises:
        UserError: as `load`.
    """
    result = _match_headers(model, folder, outputs)
    lines: list[str] = []
    if result.new:
        modules = dict.fromkeys(
            name.removesuffix(".weight").removesuffix(".bias") for name in result.new
        )
        reason = f" ({result.new_reason})" if result.new_reason else ""
        lines.append(
            f"model.init_from has no head for this task{reason}: {', '.join(modules)} start from "
            f"random weights"
        )
    if result.label_order:
        more = "…" if len(result.label_order) > SHOWN else ""
        lines.append(
            f"model.init_from has the labels in another order "
            f"({', '.join(result.label_order[:SHOWN])}{more}): the rows of its head are matched by "
            f"label"
        )
    if result.unused:
        lines.append(f"model.init_from has weights that are not used: {_listed(result.unused)}")
    if result.tied is not None:
        embedding, head = (read_tensor(folder, name) for name in result.tied)
        if not torch.equal(embedding, head):
            lines.append(
                f"model.init_from has different values in {result.tied[0]} and {result.tied[1]}, "
                f"though tie_word_embeddings is set: {result.tied[0]} is used for both"
            )
    return lines


def save(model: Transformer, folder: Folder, outputs: Outputs = NO_OUTPUTS, **more: Any) -> None:
    """Write a model so that `from_pretrained` loads it. If Hugging Face has no such architecture,
    only `load` can. `more` is added to config.json.

    Raises:
        UserError: if a weight is not finite in float32.
    """
    weights = hf.export_weights(model, outputs)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{name} does not fit float32 in the unit of the data: (mean, standard deviation) "
                f"= {outputs.scale}"
            )
    settings = hf.export_config(model, outputs, **more)
    folder.write(CONFIG, json.dumps(settings, indent=2, ensure_ascii=False).encode())
    folder.write(WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))


def _match(
    model: Transformer, folder: Folder, weights: dict[str, Tensor], outputs: Outputs
) -> Match:
    """`hf.match`, whose errors name the weights' file."""
    try:
        return hf.match(model, _settings(folder), weights, outputs)
    except ValueError as error:
        names = weight_names(folder)
        file = WEIGHTS if names == [WEIGHTS] else INDEX
        raise UserError(f"{folder}/{file}: {error}") from None


def _match_headers(model: Transformer, folder: Folder, outputs: Outputs) -> Match:
    """`hf.match` on shapes alone: its tensors are on torch's meta device."""
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
        adapter = next((name for name in ADAPTERS if folder.exists(name)), None)
        note = f"; {adapter} belongs to an adapter (LoRA, for example)" if adapter else ""
        raise UserError(
            f"{folder} has no {CONFIG}, so it is not a model in Hugging Face's layout{note}"
        ) from None


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
