"""Text into token ids and back: a byte-level BPE, so that no text is unknown."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Workers are forked or many to a machine: each task uses the core it was given and no more.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

END, MASK = "<|endoftext|>", "<|mask|>"
MASKS = (MASK, "[MASK]", "<mask>")  # what others call it
SPACE = "Ġ"  # as a byte-level vocabulary writes it
SMALL_VOCABULARY = 65_536  # whose tokens are stored in 16 bits


class TokenizerConfig(BaseModel):
    """The `tokenizer:` section of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["bpe"] = Field("bpe", description="byte-level byte-pair encoding, trained here")
    vocab_size: int = Field(
        2048, ge=257, le=65_536, description="256 bytes, one end token and the merges"
    )


class TextProcessor:
    """A trained tokenizer. Documents end with `end_token`.

    One from elsewhere may put tokens of its own around a text, such as [CLS] and [SEP]: `prefix`
    and `suffix`.
    """

    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(
        self,
        tokenizer: Tokenizer,
        end: str = END,
        vocab_size: int = 0,
        special: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            vocab_size: where the model that it belongs to knows more tokens than it has.
            special: what its special tokens are called by kind, where it comes from elsewhere:
                `pad_token`, say.
        """
        self.tokenizer = tokenizer
        self.end = end
        self.special = special or {}
        known = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.vocab_size: int = max(vocab_size, known)
        self.num_outputs = 1
        end_token = tokenizer.token_to_id(end)
        if end_token is None:
            raise ValueError(f"the tokenizer has no {end} token")
        self.dtype = np.uint16 if self.vocab_size <= SMALL_VOCABULARY else np.int32
        self.end_token: int = end_token
        masks = (self.special.get("mask_token", MASK), *MASKS)
        there = (mask for mask in masks if tokenizer.token_to_id(mask) is not None)
        self.mask: str | None = next(there, None)
        self.mask_token: int | None = tokenizer.token_to_id(self.mask) if self.mask else None
        # A character of its vocabulary stands for a byte.
        self._writes_bytes = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self.token_bytes = _token_bytes(tokenizer, end, self.vocab_size)
        self.prefix, self.suffix = _around(tokenizer)

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        config: TokenizerConfig,
        special: tuple[str, ...] = (),
        prefix_space: bool = False,
    ) -> Self:
        """Train on texts. Where they hold too little, the vocabulary is smaller than asked for.

        Args:
            prefix_space: a text is read as if a space stood before it, so that its first word is
                the same token as elsewhere; for models that never write, since it comes back too.
        """
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
        found = json.loads(content)
        if "tokenizer" not in found:
            return cls(Tokenizer.from_str(content.decode()))
        tokenizer = Tokenizer.from_str(json.dumps(found["tokenizer"]))
        return cls(tokenizer, found["end"], found["vocab_size"], found["special"])

    def to_bytes(self) -> bytes:
        """The tokenizer, with what it cannot say itself where it was not fitted here."""
        own = {"end": self.end, "vocab_size": self.vocab_size, "special": self.special}
        if own == {"end": END, "vocab_size": self.tokenizer.get_vocab_size(), "special": {}}:
            return self.tokenizer_file()
        content = {**own, "tokenizer": json.loads(self.tokenizer_file())}
        return json.dumps(content, ensure_ascii=False).encode()

    def tokenizer_file(self) -> bytes:
        """What Hugging Face's libraries call tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=False)).encode()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; a special token's name in it is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # `encode_special_tokens`: what a user typed never becomes a control token.
        self.tokenizer.encode_special_tokens = True
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]

    @property
    def opening(self) -> list[int]:
        """What stands before a text that is written: `prefix`, but for the end of another text."""
        return self.prefix[1:] if self.prefix[:1] == [self.end_token] else self.prefix

    def encode_plain_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text alone, without `prefix` and `suffix`."""
        self.tokenizer.encode_special_tokens = True
        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode_with_offsets(
        self, texts: list[str]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids of each text alone, and from which character to which each of them reaches."""
        self.tokenizer.encode_special_tokens = True
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [(found.ids, found.offsets) for found in encodings]

    def encode_with_bytes(
        self, texts: list[str], special: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids of each text, and how many bytes of the text each of them stands for.

        A token stands for what lies between the end of the tokens before it and its own end; the
        last one for the rest too. So the bytes sum to those of the text, whatever the tokenizer
        drops or rewrites. Only a text that has no token at all counts none.

        Args:
            special: with `prefix` and `suffix`, which stand for no bytes.
        """
        before, after = (self.prefix, self.suffix) if special else ([], [])
        nothing_before, nothing_after = [0] * len(before), [0] * len(after)
        return [
            ([*before, *tokens, *after], [*nothing_before, *sizes, *nothing_after])
            for tokens, sizes in self._plain_with_bytes(texts)
        ]

    def _plain_with_bytes(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        if not (self._writes_bytes and self.tokenizer.normalizer is None):
            return self._by_places(texts)
        found: list[tuple[list[int], list[int]]] = []
        for text, tokens in zip(texts, self.encode_plain_batch(texts), strict=True):
            sizes = self.token_bytes[tokens].tolist()
            excess = sum(sizes) - len(text.encode())
            if excess == 1 and str(self.tokenizer.id_to_token(tokens[0])).startswith(SPACE):
                sizes[0] -= 1  # of the space that was put before the text
                excess = 0
            found += [(tokens, sizes)] if excess == 0 else self._by_places([text])
        return found

    def _by_places(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        self.tokenizer.encode_special_tokens = True
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            (found.ids, _bytes_at(text, [last for _, last in found.offsets]))
            for text, found in zip(texts, encodings, strict=True)
        ]

    def padded(self, name: str, rows: list[list[int]], length: int) -> dict[str, npt.NDArray[Any]]:
        """Rows of tokens, cut to `length` and filled up with 0, and how many of each are real.

        A row that ends with the tokenizer's `suffix` still does so when it is cut.
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
        """Text of token ids; bytes that are no UTF-8 (yet) become U+FFFD."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


class Decoding:
    """The text of tokens that come one by one, each decoded a few times, not with all before it.

    All that `add` and `end` return together is `decode` of all tokens. Decoders treat the first
    token as no other (the space before it goes), the last one too, bytes that are no character yet,
    and a run of bytes that is no text. So a piece is decoded after tokens whose text is known, and
    is held back until nothing that may follow changes it.
    """

    def __init__(self, processor: TextProcessor) -> None:
        self._processor = processor
        self._tokens: list[int] = []  # those before, and those held back
        self._before = ""  # the text of the former, by themselves
        self._count = 0  # of the former
        added = processor.tokenizer.get_added_tokens_decoder()
        self._unheard = {number for number, token in added.items() if token.special}

    def add(self, token: int) -> str:
        """The text that is certain by now and was not before."""
        self._tokens.append(token)
        if token in self._unheard or _is_byte(self._processor.tokenizer.id_to_token(token)):
            return ""  # a run of bytes may turn out to be no text; the former do not end it
        text = self._processor.decode(self._tokens)
        new = text.removeprefix(self._before)
        if not new or text.endswith("\ufffd") or not text.startswith(self._before):
            return ""
        alone = self._processor.decode(self._tokens[self._count :])
        if alone.strip(
            " "
        ):  # so that a decoder that strips the first token strips nothing of others
            del self._tokens[: self._count]
            text = alone
        self._before, self._count = text, len(self._tokens)
        return new

    def end(self) -> str:
        """The text of what was held back."""
        return self._processor.decode(self._tokens).removeprefix(self._before)


def _is_byte(token: str | None) -> bool:
    """Whether a token of another's tokenizer stands for a byte: `<0xE2>`."""
    return token is not None and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token) is not None


def commonest(texts: list[str]) -> str:
    """The text that comes most often; of several, the first of them by name."""
    counts = Counter(texts)
    return min(counts, key=lambda text: (-counts[text], text))


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind a text."""
    if tokenizer.num_special_tokens_to_add(is_pair=False) == 0:
        return [], []
    for text in ("a", "0", "."):  # it may know some of them
        found = tokenizer.encode(text)
        plain = [i for i, special in enumerate(found.special_tokens_mask) if not special]
        if plain:
            return found.ids[: plain[0]], found.ids[plain[-1] + 1 :]
    return [], []


def _bytes_at(text: str, ends: list[int]) -> list[int]:
    """The bytes of text from one end to the next, none where it lies before; the last has the rest.

    `ends` are in characters.
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
    """How many bytes of text each token stands for, int64 (size,)."""
    by_bytes = isinstance(tokenizer.decoder, decoders.ByteLevel)  # a character stands for a byte
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special} | {end}
    as_written = {token.content for token in added}
    lengths = np.zeros(size, dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        if token in special:
            continue
        if by_bytes and token not in as_written:
            lengths[number] = len(token)
        else:
            lengths[number] = len(tokenizer.decode([number]).encode())
    return lengths
