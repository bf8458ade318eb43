"""The processor of texts: a tokenizer, text to token ids and back. A new one is a byte-level BPE
(Radford et al. 2019), which can encode any text.

`tokenizers` is imported where a tokenizer is made: the training loop reads tokens, and runs on a
machine without that library (`benchmarks/gpu.py`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Several workers share a machine, and each has its own cores: the tokenizer starts no threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

END, MASK = "<|endoftext|>", "<|mask|>"
MASKS = (MASK, "[MASK]", "<mask>")  # the last two: of BERT and RoBERTa
SPACE = "Ġ"  # the space, in a byte-level vocabulary
SMALL_VOCABULARY = 65_536  # up to this size, 16 bits store a token


class TokenizerConfig(BaseModel):
    """The `tokenizer:` section of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["bpe"] = Field("bpe", description="byte-level byte-pair encoding, trained here")
    vocab_size: int = Field(
        2048, ge=257, le=65_536, description="256 bytes, one end token and the merges"
    )


class TextProcessor:
    """A trained tokenizer. Documents end with `end_token`.

    An imported tokenizer may put special tokens around a text, such as [CLS] and [SEP]: `prefix`
    and `suffix`.
    """

    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(
        self,
        tokenizer: Tokenizer,
        end: str = END,
        vocab_size: int = 0,
        special: dict[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """
        Args:
            end: the token that ends a text.
            vocab_size: the model's vocabulary size, if it is larger than the tokenizer's.
            special: an imported tokenizer's special tokens by kind, for example `pad_token`.
            chat_template: an imported model's Jinja template of a conversation.

        Raises:
            ValueError: if the tokenizer has no token `end`.
        """
        self.tokenizer = tokenizer
        self.end = end
        self.special = special or {}
        self.chat_template = chat_template
        known = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.vocab_size: int = max(vocab_size, known)
        self.num_outputs = 1
        end_token = tokenizer.token_to_id(end)
        if end_token is None:
            raise ValueError(f"the tokenizer has no {end} token")
        self.dtype = np.uint16 if self.vocab_size <= SMALL_VOCABULARY else np.int32
        self.end_token: int = end_token
        masks = (self.special.get("mask_token", MASK), *MASKS)
        known_masks = (mask for mask in masks if tokenizer.token_to_id(mask) is not None)
        self.mask: str | None = next(known_masks, None)
        self.mask_token: int | None = tokenizer.token_to_id(self.mask) if self.mask else None
        # In a byte-level vocabulary each character of a token stands for one byte.
        self.is_byte_level = _is_byte_level(tokenizer)
        self.token_bytes = _token_bytes(tokenizer, end, self.vocab_size)
        self.prefix, self.suffix = _surrounding_tokens(tokenizer)

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        config: TokenizerConfig,
        special: tuple[str, ...] = (),
        prefix_space: bool = False,
    ) -> Self:
        """Train a byte-level BPE. The vocabulary is smaller than configured if the texts have too
        few distinct pairs to merge.

        Args:
            special: further special tokens, after the end token.
            prefix_space: put a space before each text, so that its first word gets the same token
                as elsewhere. Decoding returns this space, so generating models do not use it.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=[END, *special],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Restore what `to_bytes` wrote."""
        from tokenizers import Tokenizer

        settings = json.loads(content)
        if "tokenizer" not in settings:
            return cls(Tokenizer.from_str(content.decode()))
        tokenizer = Tokenizer.from_str(json.dumps(settings["tokenizer"]))
        return cls(
            tokenizer,
            settings["end"],
            settings["vocab_size"],
            settings["special"],
            settings.get("chat_template"),
        )

    def to_bytes(self) -> bytes:
        """The tokenizer as JSON. An imported one is wrapped, with the settings that the tokenizer
        file does not hold."""
        own: dict[str, Any] = {
            "end": self.end,
            "vocab_size": self.vocab_size,
            "special": self.special,
        }
        if self.chat_template is not None:
            own["chat_template"] = self.chat_template
        if own == {"end": END, "vocab_size": self.tokenizer.get_vocab_size(), "special": {}}:
            return self.tokenizer_file()
        content = {**own, "tokenizer": json.loads(self.tokenizer_file())}
        return json.dumps(content, ensure_ascii=False).encode()

    def tokenizer_file(self) -> bytes:
        """The content of Hugging Face's tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=False)).encode()

    @property
    def special_names(self) -> dict[str, str]:
        """The names of the tokenizer's special tokens, by kind, for example `eos_token`."""
        if self.special:  # an imported tokenizer has its own
            return {"eos_token": self.end, "pad_token": self.end, **self.special}
        own = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), self.end)
        return own | ({"mask_token": self.mask} if self.mask is not None else {})

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with `prefix` and `suffix`. If the text contains the name of a
        special token, it is encoded as plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` for each text."""
        return [encoding.ids for encoding in self._plain().encode_batch_fast(texts)]

    @property
    def opening(self) -> list[int]:
        """The tokens before a generated text, which starts from the end token: `prefix`, without a
        leading end token."""
        return self.prefix[1:] if self.prefix[:1] == [self.end_token] else self.prefix

    def encode_plain_batch(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, without `prefix` and `suffix`."""
        encodings = self._plain().encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(
        self, texts: list[str]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The token ids of each text, without `prefix` and `suffix`, and the characters that each
        token covers: from (included) and to (excluded)."""
        encodings = self._plain().encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def encode_with_bytes(
        self, texts: list[str], special: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """The token ids of each text, and the number of bytes of the text that each token covers.

        A token covers the text from the end of the tokens before it to its own end, and the last
        token also the rest. The bytes therefore add up to the text's bytes, even if the tokenizer
        drops or rewrites characters. Only a text without tokens has 0.

        Args:
            special: add `prefix` and `suffix`, which cover 0 bytes.
        """
        before, after = (self.prefix, self.suffix) if special else ([], [])
        zeros_before, zeros_after = [0] * len(before), [0] * len(after)
        return [
            ([*before, *tokens, *after], [*zeros_before, *sizes, *zeros_after])
            for tokens, sizes in self._plain_with_bytes(texts)
        ]

    def _plain(self) -> Tokenizer:
        """The tokenizer, set so that a user's text never becomes a special token."""
        # Setting it always would fail while another thread encodes.
        if not self.tokenizer.encode_special_tokens:
            self.tokenizer.encode_special_tokens = True
        return self.tokenizer

    def _plain_with_bytes(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """`encode_with_bytes` from `token_bytes` where that is exact, else from the offsets, which
        take longer."""
        if not (self.is_byte_level and self.tokenizer.normalizer is None):
            return self._bytes_from_offsets(texts)
        encoded: list[tuple[list[int], list[int]]] = []
        for text, tokens in zip(texts, self.encode_plain_batch(texts), strict=True):
            sizes = self.token_bytes[tokens].tolist()
            excess = sum(sizes) - len(text.encode())
            if excess == 1 and str(self.tokenizer.id_to_token(tokens[0])).startswith(SPACE):
                sizes[0] -= 1  # the space that the tokenizer put before the text
                excess = 0
            encoded += [(tokens, sizes)] if excess == 0 else self._bytes_from_offsets([text])
        return encoded

    def _bytes_from_offsets(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        return [
            (tokens, _bytes_between(text, [last for _, last in offsets]))
            for text, (tokens, offsets) in zip(texts, self.encode_with_offsets(texts), strict=True)
        ]

    def padded(self, name: str, rows: list[list[int]], length: int) -> dict[str, npt.NDArray[Any]]:
        """`name`, (rows, length): tokens, cut to `length` or padded with 0; and `<name>_length`,
        (rows,): how many tokens of each row are real.

        A row that ends with the tokenizer's `suffix` still ends with it after the cut.
        """
        tokens = np.zeros((len(rows), length), dtype=self.dtype)
        lengths = np.array([min(len(row), length) for row in rows], dtype=np.int32)
        size = len(self.suffix)
        for i, row in enumerate(rows):
            tokens[i, : lengths[i]] = row[:length]
            if 0 < size < length < len(row) and row[-size:] == self.suffix:
                tokens[i, length - size :] = self.suffix
        return {name: tokens, f"{name}_length": lengths}

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, without special tokens. Bytes that are not (or not yet) valid
        UTF-8 become U+FFFD."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def commonest(texts: list[str]) -> str:
    """The most frequent text; among equally frequent ones, the first in alphabetical order."""
    counts = Counter(texts)
    return min(counts, key=lambda text: (-counts[text], text))


def _surrounding_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    if tokenizer.num_special_tokens_to_add(is_pair=False) == 0:
        return [], []
    for text in ("a", "0", "."):  # the vocabulary may lack some of these
        encoding = tokenizer.encode(text)
        plain = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        if plain:
            return encoding.ids[: plain[0]], encoding.ids[plain[-1] + 1 :]
    return [], []


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    from tokenizers import decoders

    return isinstance(tokenizer.decoder, decoders.ByteLevel)


def _bytes_between(text: str, ends: list[int]) -> list[int]:
    """The bytes of text between each token's end and the one before; the last token has the rest.

    `ends` counts characters. A token that ends before an earlier one gets 0.
    """
    if not ends:
        return []
    reached = np.maximum.accumulate(np.minimum(ends, len(text)))
    reached[-1] = len(text)
    if not text.isascii():
        sizes = [len(character.encode()) for character in text]
        reached = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[reached]
    counts: list[int] = np.diff(reached, prepend=0).tolist()
    return counts


def _token_bytes(tokenizer: Tokenizer, end: str, size: int) -> npt.NDArray[np.int64]:
    """The number of bytes of text that each token stands for, int64 (size,); 0 for special ones."""
    is_byte_level = _is_byte_level(tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special} | {end}
    verbatim = {token.content for token in added}  # the vocabulary has them as plain text
    lengths = np.zeros(size, dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        if token in special:
            continue
        if is_byte_level and token not in verbatim:
            lengths[number] = len(token)
        else:
            lengths[number] = len(tokenizer.decode([number]).encode())
    return lengths
