"""The tokenizer: no text is unknown, none is lost, none is a command."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from orchestrator.processors.decoding import Decoding
from orchestrator.processors.spelling import Spelling
from orchestrator.processors.text import END, TextProcessor, TokenizerConfig

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


# Tokenizers from elsewhere: what each token stands for


def sentencepiece(byte_fallback: bool) -> Tokenizer:
    """As Llama 2's: `▁` for a space, one before each text."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *"then",
        "th",
        "▁th",
    ]
    model = models.BPE(
        vocab={word: i for i, word in enumerate(words)},
        merges=[("t", "h"), ("▁", "th")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's: Metaspace, NFKC, an end behind each text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁the", -2.0), ("n", -4.0), ("fi", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    """As BERT's: in lower case, [CLS] and [SEP] around each text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "th", "##e", "##ing", "n", "##n", "."]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def bytelevel(prefix_space: bool) -> Tokenizer:
    """As GPT-4's and Llama 3's: pieces are split first, then bytes; two tokens were added."""
    tokenizer = TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=300)).tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\w+|\s+|\S"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False),
        ]
    )
    tokenizer.add_tokens(["<tool>", AddedToken("the user", lstrip=True)])
    return tokenizer


FOREIGN: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "Llama 2": (lambda: sentencepiece(True), "</s>"),
    "unknown characters": (lambda: sentencepiece(False), "</s>"),
    "T5": (unigram, "</s>"),
    "BERT": (wordpiece, "[SEP]"),
    "Llama 3": (lambda: bytelevel(False), END),
    "a space before every piece": (lambda: bytelevel(True), END),
    "ours": (lambda: TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=300)).tokenizer, END),
    "ours, with a space before": (
        lambda: TextProcessor.fit(TRAINING, TokenizerConfig(vocab_size=300), (), True).tokenizer,
        END,
    ),
}


@pytest.fixture(scope="module", params=FOREIGN)
def foreign(request: pytest.FixtureRequest) -> TextProcessor:
    build, end = FOREIGN[request.param]
    return TextProcessor(build(), end)


@given(unicode_text)
@example("The  things\n then, naïve ﬁ x² 机器学习 🙂 <tool> the user </s>[SEP]")
@example("  then  ")
@example("\x00")
@example("")
def test_the_bytes_that_tokens_stand_for_are_those_of_the_text(
    foreign: TextProcessor, text: str
) -> None:
    ((tokens, sizes),) = foreign.encode_with_bytes([text])
    assert tokens == foreign.encode_plain_batch([text])[0] and len(sizes) == len(tokens)
    assert sum(sizes) == (len(text.encode()) if tokens else 0) and all(n >= 0 for n in sizes)
    ((whole, of_whole),) = foreign.encode_with_bytes([text], special=True)
    assert whole == foreign.encode(text)
    assert of_whole == [*[0] * len(foreign.prefix), *sizes, *[0] * len(foreign.suffix)]


@given(unicode_text)
def test_both_ways_to_count_the_bytes_of_our_own_tokens_agree(
    processor: TextProcessor, text: str
) -> None:
    ((tokens, sizes),) = processor.encode_with_bytes([text])
    assert sizes == processor.token_bytes[tokens].tolist()
    ((again, from_offsets),) = processor._bytes_from_offsets([text])
    assert again == tokens and sum(from_offsets) == sum(sizes)
    if text.isascii():
        assert from_offsets == sizes


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "Llama 2",
            "the né",
            [("▁th", 2), ("e", 1), ("▁", 1), ("n", 1), ("<0xC3>", 2), ("<0xA9>", 0)],
        ),
        ("BERT", "Thing  the.", [("th", 2), ("##ing", 3), ("the", 5), (".", 1)]),
        ("T5", "the ﬁ ", [("▁the", 3), ("▁", 1), ("fi", 4)]),
        ("ours, with a space before", "ab", [("Ġa", 1), ("b", 1)]),
    ],
)
def test_a_token_stands_for_what_no_token_before_it_does(
    name: str, text: str, expected: list[tuple[str, int]]
) -> None:
    build, end = FOREIGN[name]
    processor = TextProcessor(build(), end)
    ((tokens, sizes),) = processor.encode_with_bytes([text])
    found = [processor.tokenizer.id_to_token(token) for token in tokens]
    assert list(zip(found, sizes, strict=True)) == expected


def test_what_a_tokenizer_puts_around_a_text_is_known_and_outlasts_a_cut() -> None:
    processor = TextProcessor(wordpiece(), "[SEP]")
    assert (processor.prefix, processor.suffix) == ([2], [3])
    rows = processor.encode_batch(["the the the the", "the"])
    arrays = processor.padded("tokens", [*rows, [4, 4, 4, 4, 4]], 4)
    assert arrays["tokens"].tolist() == [[2, 4, 4, 3], [2, 4, 3, 0], [4, 4, 4, 4]]
    assert arrays["tokens_length"].tolist() == [4, 3, 4]
    assert processor.encode_plain_batch(["the"]) == [[4]]


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


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data())
@settings(max_examples=200)
def test_a_text_that_follows_tokens_is_decoded_as_behind_them(
    kind: str, data: st.DataObject
) -> None:
    processor = DECODERS[kind]
    tokens = data.draw(st.lists(st.integers(0, processor.vocab_size - 1), max_size=12))
    cut = data.draw(st.integers(0, len(tokens)))
    whole, before = Decoding(processor), processor.decode(tokens[:cut])
    assume("".join(map(whole.add, tokens[:cut])) == before)  # else it ends within a character
    decoding = Decoding(processor, before=tokens[:cut])
    text = "".join(map(decoding.add, tokens[cut:])) + decoding.end()
    assert before + text == processor.decode(tokens)


def test_the_space_before_the_first_word_after_a_prompt_is_kept() -> None:
    processor = DECODERS["llama"]
    a, the = (processor.tokenizer.token_to_id(token) for token in ("▁a", "▁the"))
    assert Decoding(processor).add(the) == "the"
    assert Decoding(processor, before=[a]).add(the) == " the"


# Single tokens


@pytest.mark.parametrize("kind", DECODERS)
def test_the_spellings_of_a_texts_tokens_join_to_the_text(kind: str) -> None:
    processor = DECODERS[kind]
    tokens = processor.encode("the café, 中文 and 🙂") if kind == "bytes" else list(range(2, 10))
    spelling = Spelling(processor)
    text = processor.decode([*tokens[:1], *tokens]).removeprefix(processor.decode(tokens[:1]))
    assert b"".join(map(spelling.bytes_of, tokens)).decode().strip() == text.strip()


def test_half_a_character_is_spelt_by_its_bytes() -> None:
    processor = TextProcessor.fit(["a"], TokenizerConfig(vocab_size=257))
    spelling, tokens = Spelling(processor), processor.encode("é\n ")
    assert [spelling.bytes_of(token) for token in tokens] == [b"\xc3", b"\xa9", b"\n", b" "]
    texts = [spelling.text_of(token) for token in tokens]
    assert texts == ["bytes:\\xc3", "bytes:\\xa9", "\n", " "]
    assert spelling.text_of(processor.end_token) == END
    assert spelling.bytes_of(10_000) == b""
    llama = DECODERS["llama"]
    assert Spelling(llama).bytes_of(llama.tokenizer.token_to_id("<0xE2>")) == b"\xe2"
    assert Spelling(llama).text_of(llama.tokenizer.token_to_id("▁the")) == " the"
