"""Decodes tokens as they are generated."""

import re
from collections.abc import Sequence

from orchestrator.processors.text import TextProcessor

BEFORE = 8  # more earlier tokens than this never change how a token is decoded


class Decoding:
    """Decodes tokens that come one by one, in linear time.

    The results of `add` and `end`, joined, equal `decode` of all tokens. Decoding each token alone
    would not do: decoders strip the space before the first token, treat the last token differently,
    and join byte tokens into characters. So new tokens are decoded after some earlier ones whose
    text is known, and their text is held back until no later token can change it.
    """

    def __init__(self, processor: TextProcessor, before: Sequence[int] = ()) -> None:
        """
        Args:
            before: tokens that the text follows. Their own text is not returned.
        """
        self._processor = processor
        self._tokens: list[int] = []  # first the known tokens, then those held back
        self._known_count = 0
        self._known_text = ""  # the known tokens, decoded by themselves
        added = processor.tokenizer.get_added_tokens_decoder()
        self._special = {number for number, token in added.items() if token.special}
        for token in before[-BEFORE:]:
            self.add(token)

    def add(self, token: int) -> str:
        """Take one more token; returns the new text that later tokens cannot change."""
        self._tokens.append(token)
        # Later bytes can make a run of byte tokens invalid, and special tokens do not end a run.
        if token in self._special or _is_byte(self._processor.tokenizer.id_to_token(token)):
            return ""
        text = self._processor.decode(self._tokens)
        new = text.removeprefix(self._known_text)
        if not new or text.endswith("\ufffd") or not text.startswith(self._known_text):
            return ""
        alone = self._processor.decode(self._tokens[self._known_count :])
        # Spaces alone stay behind the known tokens: a decoder may strip them if they come first.
        if alone.strip(" "):
            del self._tokens[: self._known_count]
            text = alone
        self._known_text, self._known_count = text, len(self._tokens)
        return new

    def end(self) -> str:
        """The text that is still held back, after the last token."""
        return self._processor.decode(self._tokens).removeprefix(self._known_text)


def _is_byte(token: str | None) -> bool:
    """Whether a token of an imported tokenizer stands for a byte, as `<0xE2>` does."""
    return token is not None and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token) is not None
