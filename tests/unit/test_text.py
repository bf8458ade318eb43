"""The tokenizer: no text is unknown, none is lost, none is a command."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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
