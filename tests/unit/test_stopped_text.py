"""A text ends before the first stop text, however it is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serve.stopped_text import StoppedText

LETTERS = "abé"
stop_texts = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4)


def joined(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    found, text = StoppedText(stops), ""
    for number, piece in enumerate(pieces):
        text += found.add(piece, is_last=number == len(pieces) - 1)
        assert found.settled == len(text)
        if found.stopped:
            break
    return text, found.stopped


@given(st.text(LETTERS, max_size=40), stop_texts, st.data())
def test_the_pieces_do_not_matter(whole: str, stops: list[str], data: st.DataObject) -> None:
    pieces, rest = [], whole
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:length])
        rest = rest[length:]
    text, stopped = joined(pieces, stops)
    assert (text, stopped) == joined([whole], stops)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
    assert stopped == any(stop in whole for stop in stops)
    if stopped:
        assert any(whole.startswith(stop, len(text)) for stop in stops)
    else:
        assert text == whole


@given(st.text(LETTERS, min_size=1, max_size=30), stop_texts)
def test_what_was_returned_is_never_part_of_a_stop_text(whole: str, stops: list[str]) -> None:
    found, sent = StoppedText(stops), ""
    for number, letter in enumerate(whole):
        sent += found.add(letter)
        assert not any(stop in sent for stop in stops)
        if found.stopped:
            break
        held = whole[len(sent) : number + 1]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["abcd"], ["abcd", "bc"], "a"),  # "bc" is complete first
        (["a", "b", "c", "d"], ["abcd", "bc"], "a"),
        (["abab", "abc"], ["ababc"], "ab"),
        (["x"], [], "x"),
    ],
)
def test_the_stop_text_that_is_complete_first_counts(
    pieces: list[str], stops: list[str], text: str
) -> None:
    assert joined(pieces, stops)[0] == text
