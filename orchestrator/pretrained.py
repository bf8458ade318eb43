"""Models in Hugging Face's layout, on any storage: config.json and model.safetensors.

Nothing pickled is read. Only safetensors are, so that a model from anywhere can run no code here.
"""

import json
from collections.abc import Iterable
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.folder import Folder
from orchestrator.model import hf
from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import Transformer
from orchestrator.processors.text import END, MASK, TextProcessor, TokenizerConfig

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Folder) -> tuple[ModelConfig, int]:
    """The architecture of a model, and the size of its vocabulary: 0 where it reads images.

    Raises:
        UserError: where there is none, or none that this Transformer can be.
    """
    settings = _settings(folder)
    try:
        return hf.read_config(settings), int(settings.get("vocab_size", 0))
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
    try:
        content = folder.read(TOKENIZER)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {TOKENIZER}: its model cannot read text") from None
    said = json.loads(folder.read(TOKENIZER_CONFIG)) if folder.exists(TOKENIZER_CONFIG) else {}
    end = said.get("eos_token") or said.get("sep_token") or END
    if isinstance(end, dict):
        end = end["content"]
    try:
        tokens = Tokenizer.from_str(content.decode())
        tokens.no_padding()
        tokens.no_truncation()
        processor = TextProcessor(tokens, end, read_config(folder)[1])
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(f"{folder}/{TOKENIZER}: {error}") from None
    if MASK in special and processor.mask_token is None:
        raise UserError(f"{folder}/{TOKENIZER}: has no mask token, which this task needs")
    return processor


def load(model: Transformer, folder: Folder) -> list[str]:
    """Fill a model with the weights in a folder; returns the names of what stays as it was.

    Raises:
        UserError: where the weights cannot be read, or are not the model's.
    """
    try:
        return hf.load(model, _settings(folder), _weights(folder))
    except ValueError as error:
        raise UserError(f"{folder}/{WEIGHTS}: {error}") from None


def save(
    model: Transformer, folder: Folder, labels: list[str] | None = None, **token_ids: int | None
) -> None:
    """Write a model as `from_pretrained` loads it or, where no architecture of Hugging Face's is
    this model, as `load` alone does."""
    settings = hf.export_config(model, labels, **token_ids)
    folder.write(CONFIG, json.dumps(settings, indent=2, ensure_ascii=False).encode())
    weights = safetensors.torch.save(hf.export_weights(model), metadata={"format": "pt"})
    folder.write(WEIGHTS, weights)


def _settings(folder: Folder) -> dict[str, Any]:
    try:
        found = json.loads(folder.read(CONFIG))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no {CONFIG}: no model in Hugging Face's layout") from None
    except ValueError as error:
        raise UserError(f"{folder}/{CONFIG} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{folder}/{CONFIG} is no JSON object")
    return found


def _weights(folder: Folder) -> dict[str, Tensor]:
    names = [WEIGHTS]
    if not folder.exists(WEIGHTS):
        if not folder.exists(INDEX):
            raise UserError(
                f"{folder} holds no {WEIGHTS}; other formats can run code of their author's and "
                f"are not read: save the model with safetensors"
            )
        names = sorted(set(json.loads(folder.read(INDEX))["weight_map"].values()))
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= safetensors.torch.load(folder.read(name))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder}/{name} cannot be read: {error}") from None
    return {name: tensor.float() for name, tensor in weights.items()}
