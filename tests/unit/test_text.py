"""The tokenizer: no text is unknown, none is lost, none is a command."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from orchestrator.processors.text import END, Decoding, TextProcessor, TokenizerConfig

TRAINING = ["def add(a, b):\n    return a + b\n", "naïve café 中文 русский", "the then there"] * 20

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    return TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=300))


@given(unicode_text)
@example("中文,简体和繁體字")
@example("👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f600")
@example("שלום עולם ‏مرحبا‎")
@example("\x00\x01\x7f\x85\u2028\r\n\t \ufeff\ufffe\uffff")
@example("  leading,  double and trailing  ")
@example("e\u0301 is not \u00e9")
@example("Ġ Ċ are what the tokenizer writes for space and newline")
def test_every_text_comes_back_as_it_was(processor: TextProcessor, text: str) -> None:
    assert processor.decode(processor.encode(text)) == text


@given(unicode_text)
def test_the_bytes_of_the_tokens_sum_to_the_bytes_of_the_text(
    processor: TextProcessor, text: str
) -> None:
    assert processor.token_bytes[processor.encode(text)].sum() == len(text.encode())


def test_with_a_space_before_a_text_its_first_word_is_the_same_as_elsewhere() -> None:
    config = TokenizerConfig(vocab_size=300)
    bare = TextProcessor.fit(TRAINING, config)
    spaced = TextProcessor.fit(TRAINING, config, prefix_space=True)
    for processor in (spaced, TextProcessor.from_bytes(spaced.to_bytes())):
        assert processor.encode("then the") == processor.encode(" then the")
    assert bare.encode("then the") != bare.encode(" then the")


def test_the_end_token_stands_for_no_text(processor: TextProcessor) -> None:
    assert processor.token_bytes[processor.end_token] == 0
    tokens = [*processor.encode("a"), processor.end_token, *processor.encode("b")]
    assert processor.decode(tokens) == "ab"


@pytest.mark.parametrize("text", [END, f"a{END}b", f" {END}\n{END}", END * 3])
def test_the_name_of_the_end_token_in_a_text_is_plain_text(
    processor: TextProcessor, text: str
) -> None:
    reloaded = TextProcessor.from_bytes(processor.to_bytes())
    for each in (processor, reloaded):
        tokens = each.encode(text)
        assert each.end_token not in tokens
        assert each.decode(tokens) == text


def test_a_tokenizer_trained_on_the_name_of_the_end_token_still_tells_them_apart() -> None:
    processor = TextProcessor.fit([END * 5] * 50, TokenizerConfig(vocab_size=400))
    tokens = processor.encode(END * 3)
    assert processor.end_token not in tokens
    assert processor.decode(tokens) == END * 3
    assert processor.token_bytes[tokens].sum() == 3 * len(END)


@given(st.lists(unicode_text, max_size=5))
def test_a_batch_is_encoded_as_its_texts_one_by_one(
    processor: TextProcessor, texts: list[str]
) -> None:
    assert processor.encode_batch(texts) == [processor.encode(text) for text in texts]


def test_frequent_words_become_single_tokens() -> None:
    processor = TextProcessor.fit(["a return"] * 9, TokenizerConfig(vocab_size=300))
    assert len(processor.encode(" return")) == 1
    assert len(processor.encode(" nruter")) > 1


def test_all_tokens_are_within_the_vocabulary_asked_for(processor: TextProcessor) -> None:
    assert processor.vocab_size == 300
    assert sorted(processor.tokenizer.get_vocab().values()) == list(range(300))


def test_the_smallest_vocabulary_is_one_token_a_byte() -> None:
    processor = TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=257))
    assert processor.vocab_size == 257
    assert len(processor.encode("the 中")) == len("the 中".encode())


def test_too_little_text_gives_a_smaller_vocabulary_that_still_knows_every_text() -> None:
    processor = TextProcessor.fit(["ab"], TokenizerConfig(vocab_size=1000))
    assert 257 <= processor.vocab_size < 1000
    assert processor.decode(processor.encode("中文 🎉")) == "中文 🎉"


def test_the_same_texts_give_the_same_file() -> None:
    first, second = (TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=300)) for _ in "12")
    assert first.to_bytes() == second.to_bytes()


def test_a_saved_tokenizer_encodes_as_before(processor: TextProcessor) -> None:
    reloaded = TextProcessor.from_bytes(processor.to_bytes())
    text = "the naïve return of 中文"
    assert reloaded.encode(text) == processor.encode(text)
    assert (reloaded.vocab_size, reloaded.end_token) == (300, processor.end_token)


def test_a_character_cut_in_half_is_marked_and_does_not_raise(processor: TextProcessor) -> None:
    tokens = processor.encode("🎉")
    assert len(tokens) > 1
    assert "\ufffd" in processor.decode(tokens[:-1])


# Vocabularies that do not fit 16 bits


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "int32")])
def test_tokens_are_stored_as_wide_as_the_vocabulary_asks(vocab_size: int, dtype: str) -> None:
    tokenizer = TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=300)).tokenizer
    processor = TextProcessor(tokenizer, vocab_size=vocab_size)
    arrays = processor.padded("tokens", [[vocab_size - 1, 7], []], 3)
    assert arrays["tokens"].dtype == dtype
    assert arrays["tokens"].tolist() == [[vocab_size - 1, 7, 0], [0, 0, 0]]
    assert arrays["tokens_length"].tolist() == [2, 0]
    again = TextProcessor.from_bytes(processor.to_bytes())
    assert again.vocab_size == vocab_size and again.dtype == processor.dtype


# Decoding tokens as they come

LETTERS = [
    "▁",
    "▁▁",
    "▁a",
    "b",
    "▁the",
    "é",
    "。",
    ".",
    "\n",
    "�",
    "'s",
    "##b",
    "##ing",
    "c</w>",
    "</w>",
]
BYTES = [f"<0x{byte:02X}>" for byte in (0x20, 0x41, 0x80, 0xA9, 0xC3, 0xE2, 0x82, 0xAC, 0xF0, 0xFF)]


def of_decoder(decoder: Any) -> TextProcessor:
    tokens = [END, *LETTERS, *BYTES]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, END))
    tokenizer.add_special_tokens([END])
    tokenizer.decoder = decoder
    return TextProcessor(tokenizer)


LLAMA = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
DECODERS = {
    "bytes": TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=300)),
    "sentencepiece": of_decoder(decoders.Metaspace()),
    "llama": of_decoder(LLAMA),
    "llama, bytes alone": of_decoder(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])),
    "wordpiece": of_decoder(decoders.WordPiece()),
    "suffixes": of_decoder(decoders.BPEDecoder()),
}


def test_a_control_token_does_not_end_a_run_of_bytes() -> None:
    processor = DECODERS["llama"]
    space, end, cut = (processor.tokenizer.token_to_id(t) for t in ("<0x20>", END, "<0x80>"))
    decoding = Decoding(processor)
    parts = [decoding.add(token) for token in (space, end, cut)]
    assert "".join([*parts, decoding.end()]) == processor.decode([space, end, cut])


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data())
@settings(max_examples=300)
def test_tokens_that_come_one_by_one_are_the_same_text(kind: str, data: st.DataObject) -> None:
    processor = DECODERS[kind]
    tokens = data.draw(st.lists(st.integers(0, processor.vocab_size - 1), max_size=16))
    decoding = Decoding(processor)
    parts = [decoding.add(token) for token in tokens]
    assert "".join([*parts, decoding.end()]) == processor.decode(tokens)


def test_no_token_waits_without_a_reason() -> None:
    processor = DECODERS["bytes"]
    tokens = processor.encode("the café, 中文 and more\n\n")
    decoding, text = Decoding(processor), ""
    for count, token in enumerate(tokens, start=1):
        text += decoding.add(token)
        assert text == processor.decode(tokens[:count]).rstrip("�")


def test_a_long_text_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = DECODERS["bytes"]
    tokens = processor.encode("the then there, 中文 \n" * 200)
    decoded, decode = 0, processor.decode

    def counted(some: list[int]) -> str:
        nonlocal decoded
        decoded += len(some)
        return decode(some)

    monkeypatch.setattr(processor, "decode", counted)
    decoding = Decoding(processor)
    text = "".join(map(decoding.add, tokens)) + decoding.end()
    assert text == decode(tokens)
    assert decoded < 12 * len(tokens)
