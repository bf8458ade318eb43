"""The tokenizer of a folder in Hugging Face's layout: tokenizer.json, and what says which of its
tokens ends a text."""

from typing import Any

from tokenizers import Tokenizer

from orchestrator.errors import UserError
from orchestrator.processors.text import END, TextProcessor
from orchestrator.storage.folder import Folder
from orchestrator.storage.json_object import LFS, read_object

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS, GENERATION = "special_tokens_map.json", "generation_config.json"
CONFIG = "config.json"
OLDER = (
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
    """The tokenizer that belongs to a model whose embedding has so many rows.

    Raises:
        UserError: where there is none, it cannot be used, or it knows more tokens than the model.
    """
    tokens = _tokens(folder)
    known = max(tokens.get_vocab().values(), default=-1) + 1
    if known > rows:
        raise UserError(
            f"{folder}/{TOKENIZER}: knows {known:,} tokens, the model's embedding has {rows:,} "
            f"rows: model.resize_token_embeddings({known}) in transformers, and save both again"
        )
    special = _special_tokens(folder)
    end = _end(folder, tokens, special)
    try:
        return TextProcessor(tokens, end, rows, special)
    except ValueError as error:
        raise UserError(f"{folder}/{TOKENIZER}: {error}") from None


def _tokens(folder: Folder) -> Tokenizer:
    try:
        content = folder.read(TOKENIZER)
    except (FileNotFoundError, NotADirectoryError):
        names = folder.names()
        older = next((name for name in OLDER if name in names), None)
        if older is None:
            raise UserError(f"{folder} holds no {TOKENIZER}: its model cannot read text") from None
        raise UserError(
            f"{folder} holds no {TOKENIZER}, but {older}: transformers makes it of that: "
            f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}/{TOKENIZER} cannot be read: {error}") from None
    if content.startswith(LFS):
        raise UserError(
            f"{folder}/{TOKENIZER} is a pointer of git lfs, not the file (git lfs pull)"
        )
    try:
        tokens = Tokenizer.from_str(content.decode())
        tokens.no_padding()
        tokens.no_truncation()
    except Exception as error:  # tokenizers raises Exception itself
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}/{TOKENIZER}: is no tokenizer: {reason}") from None
    return tokens


def _special_tokens(folder: Folder) -> dict[str, str]:
    """What the folder calls its special tokens, by kind: `eos_token`, say."""
    found: dict[str, str] = {}
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        said = _optional(folder, name)
        for kind in KINDS:
            token = said.get(f"{kind}_token")
            if isinstance(token, dict):  # a token with the way it is matched
                token = token.get("content")
            if isinstance(token, str) and token:
                found.setdefault(f"{kind}_token", token)
    return found


def _end(folder: Folder, tokens: Tokenizer, special: dict[str, str]) -> str:
    """The token that ends a text.

    Raises:
        UserError: where none of the places says which.
    """
    for kind in ("eos_token", "sep_token"):
        if kind in special:
            return special[kind]
    for name in (GENERATION, CONFIG):
        ids = _optional(folder, name).get("eos_token_id")
        for number in ids if isinstance(ids, list) else [ids]:
            if isinstance(number, int) and number >= 0 and tokens.id_to_token(number) is not None:
                return str(tokens.id_to_token(number))
    if tokens.token_to_id(END) is not None:
        return END
    raise UserError(
        f"{folder}/{TOKENIZER}: no token is said to end a text: put eos_token into "
        f"{TOKENIZER_CONFIG} or {SPECIAL_TOKENS}, or eos_token_id into {GENERATION} or {CONFIG}"
    )


def _optional(folder: Folder, name: str) -> dict[str, Any]:
    try:
        return read_object(folder, name)
    except FileNotFoundError:
        return {}
