"""The tokenizer of a folder in Hugging Face's layout: tokenizer.json, and the settings that name
its end token and other special tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError
from orchestrator.processors.text import END, TextProcessor
from orchestrator.storage.folder import Folder
from orchestrator.storage.json_object import LFS, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS, GENERATION = "special_tokens_map.json", "generation_config.json"
CONFIG = "config.json"
OLDER_FORMATS = (
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tekken.json",
)
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of special tokens


def read_tokenizer(folder: Folder, rows: int) -> TextProcessor:
    """The tokenizer of a model whose embedding has `rows` rows.

    Raises:
        UserError: if the tokenizer is missing or invalid, or has more tokens than `rows`.
    """
    tokenizer = _read_file(folder)
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > rows:
        raise UserError(
            f"{folder}/{TOKENIZER} has {size:,} tokens, but the model's embedding has only "
            f"{rows:,} rows: call model.resize_token_embeddings({size}) in transformers, and save "
            f"both again"
        )
    special = _special_tokens(folder)
    end = _end_token(folder, tokenizer, special)
    try:
        return TextProcessor(tokenizer, end, rows, special, _chat_template(folder))
    except ValueError as error:
        raise UserError(f"{folder}/{TOKENIZER}: {error}") from None


def _read_file(folder: Folder) -> Tokenizer:
    """The folder's tokenizer.json, without padding and truncation.

    Raises:
        UserError: if the file is missing, or is not a tokenizer.
    """
    try:
        content = folder.read(TOKENIZER)
    except (FileNotFoundError, NotADirectoryError):
        names = folder.names()
        older = next((name for name in OLDER_FORMATS if name in names), None)
        if older is None:
            raise UserError(
                f"{folder} has no {TOKENIZER}: without it the model cannot read text"
            ) from None
        raise UserError(
            f"{folder} has no {TOKENIZER}, only {older}: convert it with transformers: "
            f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}/{TOKENIZER} cannot be read: {error}") from None
    if content.startswith(LFS):
        raise UserError(
            f"{folder}/{TOKENIZER} is a pointer of git lfs, not the file (git lfs pull)"
        )
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode())
        tokenizer.no_padding()
        tokenizer.no_truncation()
    except Exception as error:  # tokenizers raises Exception itself
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}/{TOKENIZER} is not a tokenizer: {reason}") from None
    return tokenizer


def _special_tokens(folder: Folder) -> dict[str, str]:
    """The folder's special tokens by kind, for example `eos_token`."""
    special: dict[str, str] = {}
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        settings = _read_optional(folder, name)
        for kind in KINDS:
            token = settings.get(f"{kind}_token")
            if isinstance(token, dict):  # a serialised AddedToken
                token = token.get("content")
            if isinstance(token, str) and token:
                special.setdefault(f"{kind}_token", token)
    return special


def _end_token(folder: Folder, tokenizer: Tokenizer, special: dict[str, str]) -> str:
    """The token that ends a text.

    Raises:
        UserError: if no file of the folder names it.
    """
    for kind in ("eos_token", "sep_token"):
        if kind in special:
            return special[kind]
    for name in (GENERATION, CONFIG):
        ids = _read_optional(folder, name).get("eos_token_id")
        for number in ids if isinstance(ids, list) else [ids]:
            if isinstance(number, int) and number >= 0:
                token = tokenizer.id_to_token(number)
                if token is not None:
                    return str(token)
    if tokenizer.token_to_id(END) is not None:
        return END
    raise UserError(
        f"{folder}/{TOKENIZER}: no end token is named: put eos_token into {TOKENIZER_CONFIG} or "
        f"{SPECIAL_TOKENS}, or eos_token_id into {GENERATION} or {CONFIG}"
    )


def _chat_template(folder: Folder) -> str | None:
    """The folder's Jinja template of a conversation; None if it has none.

    Raises:
        UserError: if its file is no text.
    """
    try:
        return folder.read(CHAT_TEMPLATE).decode()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/{CHAT_TEMPLATE} cannot be read: {error}") from None
    template = _read_optional(folder, TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):  # several by name, of which one is for conversations
        named = {each.get("name"): each for each in template if isinstance(each, dict)}
        template = named.get("default", {}).get("template")
    return template if isinstance(template, str) and template else None


def _read_optional(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON file of the folder; empty if there is no such file."""
    try:
        return read_object(folder, name)
    except FileNotFoundError:
        return {}
