"""What single tokens stand for: for log-probabilities, which name tokens by their text."""

from orchestrator.processors.text import TextProcessor


class Spelling:
    """The bytes and the text of each token, as it stands within a text.

    A special token stands for its name. A token may hold part of a character.
    """

    def __init__(self, processor: TextProcessor) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._added = {
            number: token.content
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; none for an id that the vocabulary lacks."""
        if token not in self._known:
            self._known[token] = self._spell(token)
        return self._known[token]

    def text_of(self, token: int) -> str:
        """The text of a token; as OpenAI does, `bytes:\\xe2\\x80` if it is no valid UTF-8."""
        spelled = self.bytes_of(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if self._processor.is_byte_level and all(character in BYTES for character in name):
            return bytes(BYTES[character] for character in name)
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):  # as <0xE2>
            return bytes.fromhex(name[3:5])
        # A decoder may strip the space before the first token, so the second one is taken.
        once, twice = self._processor.decode([token]), self._processor.decode([token, token])
        return twice.removeprefix(once).encode()


def _byte_alphabet() -> dict[str, int]:
    """The bytes by the characters that stand for them in a byte-level vocabulary (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTES = _byte_alphabet()
