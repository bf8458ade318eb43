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
SMALL_VOCABULARY = 65_536  # whose tokens are stored in 16 bits


class TokenizerConfig(BaseModel):
    """The `tokenizer:` section of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["bpe"] = Field("bpe", description="byte-level byte-pair encoding, trained here")
    vocab_size: int = Field(
        2048, ge=257, le=65_536, description="256 bytes, one end token and the merges"
    )


class TextProcessor:
    """A trained tokenizer. Documents end with `end_token`."""

    file_name: ClassVar[str] = "tokenizer.json"

    def __init__(self, tokenizer: Tokenizer, end: str = END, vocab_size: int = 0) -> None:
        """`vocab_size` where the model that it belongs to knows more tokens than it has."""
        self.tokenizer = tokenizer
        self.end = end
        self.vocab_size: int = max(vocab_size, tokenizer.get_vocab_size())
        self.num_outputs = 1
        end_token = tokenizer.token_to_id(end)
        if end_token is None:
            raise ValueError(f"the tokenizer has no {end} token")
        self.dtype = np.uint16 if self.vocab_size <= SMALL_VOCABULARY else np.int32
        self.end_token: int = end_token
        known = (mask for mask in MASKS if tokenizer.token_to_id(mask) is not None)
        self.mask: str | None = next(known, None)
        self.mask_token: int | None = tokenizer.token_to_id(self.mask) if self.mask else None
        self.token_bytes = _token_bytes(tokenizer, end, self.vocab_size)

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
        return cls(tokenizer, found["end"], found["vocab_size"])

    def to_bytes(self) -> bytes:
        """The tokenizer, with what it cannot say itself where it was not fitted here."""
        if self.end == END and self.vocab_size == self.tokenizer.get_vocab_size():
            return self.tokenizer_file()
        tokenizer = json.loads(self.tokenizer_file())
        content = {"end": self.end, "vocab_size": self.vocab_size, "tokenizer": tokenizer}
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

    def encode_with_places(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids of each text, and from which character to which each of them reaches."""
        self.tokenizer.encode_special_tokens = True
        return [(found.ids, found.offsets) for found in self.tokenizer.encode_batch(texts)]

    def padded(self, name: str, rows: list[list[int]], length: int) -> dict[str, npt.NDArray[Any]]:
        """Rows of tokens, cut to `length` and filled up with 0, and how many of each are real."""
        tokens = np.zeros((len(rows), length), dtype=self.dtype)
        lengths = np.array([min(len(row), length) for row in rows], dtype=np.int32)
        for i, row in enumerate(rows):
            tokens[i, : lengths[i]] = row[:length]
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


def _token_bytes(tokenizer: Tokenizer, end: str, size: int) -> npt.NDArray[np.int64]:
    """How many bytes of text each token stands for, int64 (size,)."""
    by_bytes = isinstance(tokenizer.decoder, decoders.ByteLevel)  # a character stands for a byte
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | {end}
    lengths = np.zeros(size, dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        if token not in special:
            lengths[number] = len(token) if by_bytes else len(tokenizer.decode([number]).encode())
    return lengths
