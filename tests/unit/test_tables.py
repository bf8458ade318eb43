"""csv and tsv files: how they are written, and which of their rows are lost."""

from pathlib import Path

import pytest

from orchestrator.errors import UserError
from tests.unit.reading import LABELLED, PAIR, TEXT, read, refused, write

ROWS = "".join(f"text number {i},{'pos' if i % 2 else 'neg'}\n" for i in range(50))
POEM = '"I came, I saw\nyou left, I stayed\nshe went, good\nme, too"'


# Rows that a quote swallows


@pytest.mark.parametrize(
    ("inside", "lines"),
    [
        (f'"open,neg\n{ROWS}close",pos\n', (52, 103)),
        ('"open,neg\nclose",pos\n', (52, 53)),
        ('"open,neg\none,pos\nclose",pos\n', (52, 54)),
    ],
)
def test_rows_that_two_stray_quotes_swallow_are_an_error(
    inside: str, lines: tuple[int, int], tmp_path: Path
) -> None:
    told = refused(write(tmp_path / "a.csv", f"text,label\n{ROWS}{inside}{ROWS}"))
    assert f"line {lines[0]} " in told and f"line {lines[1]} " in told and "data.quoted" in told


def test_the_first_rows_may_be_those_that_are_swallowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'text,label\n"open,neg\none,pos\nclose",pos\n{ROWS}')
    assert "line 2 (row 1)" in refused(path)


def test_swallowed_numbers_look_like_numbers_and_not_like_labels(tmp_path: Path) -> None:
    rows = "".join(f"text {i},{i / 7}\n" for i in range(50))
    path = write(tmp_path / "a.csv", f'text,label\n{rows}"open,1.5\none,2.25\nclose",3\n{rows}')
    assert "line 52" in refused(path)


def test_pairs_of_texts_are_swallowed_where_texts_of_several_lines_are_rare(tmp_path: Path) -> None:
    rows = "".join(f"good day {i},guten Tag {i}\n" for i in range(300))
    path = write(tmp_path / "a.csv", f'source,target\n{rows}"open,a\n{rows}close",b\n{rows}')
    assert "line 302" in refused(path, PAIR)
    assert len(read(path, PAIR, quoted=True)[0]) == 601  # who says so, means it


@pytest.mark.parametrize("times", [1, 100])
def test_a_poem_with_commas_is_one_text(times: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{ROWS}" + f"{POEM},pos\n" * times)
    rows, bad, notes = read(path)
    assert (len(rows), bad, notes) == (50 + times, [], [])
    assert rows[-1]["text"] == POEM.strip('"')


def test_poems_are_texts_where_there_are_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n" + "".join(f"{i},{POEM}\n" for i in range(50)))
    assert len(read(path, TEXT)[0]) == 50


def test_a_record_of_many_lines_is_told(tmp_path: Path) -> None:
    article = "\n".join("a line of words, and more of them" for _ in range(80))
    _, _, notes = read(write(tmp_path / "a.csv", f'text,label\n{ROWS}"{article}",pos\n'))
    assert notes == ["lines 52 to 131 are one row, the longest, by its quotes"]


def test_a_quote_that_is_never_closed_names_its_line(tmp_path: Path) -> None:
    told = refused(write(tmp_path / "a.csv", f'text,label\n{ROWS}"open,neg\n{ROWS}'))
    assert "line 52 (row 51): a quote opens and is never closed" in told


@pytest.mark.parametrize(
    "lines",
    ['"he said "hi\nthere", and",neg\n', '"a\nb "x" c\nd",neg\n', '"5" screen","neg"\n'],
)
def test_a_quote_within_quotes_is_an_error_where_the_next_row_is_not_certain(
    lines: str, tmp_path: Path
) -> None:
    assert "line" in refused(write(tmp_path / "a.csv", f"text,label\n{ROWS}{lines}{ROWS}"))


def test_a_quote_within_quotes_is_a_bad_row_where_the_next_row_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'text,label\n{ROWS}"he "said" it",neg\n{ROWS}')
    rows, bad, _ = read(path)
    assert (len(rows), [row.row for row in bad]) == (100, [52])


def test_a_record_of_rows_with_too_many_fields_is_not_one_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'text,label\n{ROWS}"open,neg\n{ROWS}close",pos,x\n')
    assert "line 52" in refused(path)


def test_a_last_line_that_is_cut_off_is_an_error_and_a_footer_a_bad_row(tmp_path: Path) -> None:
    assert "cut off" in refused(write(tmp_path / "a.csv", f"text,label\n{ROWS}last te"))
    rows, bad, _ = read(write(tmp_path / "b.csv", f"text,label\n{ROWS}Total: 50\n"))
    assert (len(rows), len(bad)) == (50, 1)


# Headers


def test_every_file_is_checked_not_the_first_ones_alone(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i:02}.csv", f"text,label\n{ROWS}")
    write(tmp_path / "99.csv", f"review,label\n{ROWS}")
    with pytest.raises(UserError, match=r"99\.csv: has no column 'text'; its columns are review"):
        read(tmp_path)


def test_two_columns_of_one_name_are_refused_where_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,text\na,pos,note\n")
    assert "line 1: its header names 'text' 2 times" in refused(path)
    path = write(tmp_path / "b.csv", "text,label,note,note\na,pos,x,y\n")
    assert read(path)[0] == [{"text": "a", "label": "pos"}]


@pytest.mark.parametrize("header", ['text,"lab"el', 'text,"label'])
def test_a_header_that_is_no_csv_is_refused_with_its_line(header: str, tmp_path: Path) -> None:
    assert "line 1" in refused(write(tmp_path / "a.csv", f"{header}\n{ROWS}"))


def test_the_header_of_files_that_were_joined_is_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{ROWS}\ufefftext,label\n{ROWS}text,label\n")
    rows, bad, notes = read(path)
    assert (len(rows), bad) == (100, [])
    assert notes == ["2 lines repeat the header, and are skipped"]


def test_names_in_the_first_line_are_no_row_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"Text,label\n{ROWS}")
    told = refused(path, header=False, columns={"text": 0, "label": 1})
    assert "set data.header: true" in told
    assert "data.header: false" in refused(write(tmp_path / "b.csv", ROWS))


# Delimiters and quotes


@pytest.mark.parametrize(
    ("delimiter", "shown"), [(";", "';'"), ("\t", "tabs"), ("|", "'|'"), (",", "','")]
)
@pytest.mark.parametrize("header", [True, False])
def test_columns_may_be_parted_by_something_else(
    delimiter: str, shown: str, header: bool, tmp_path: Path
) -> None:
    content = ("text,label\n" * header + ROWS).replace(",", delimiter)
    path = write(tmp_path / ("a.tsv" if delimiter == "," else "a.csv"), content)
    columns = {} if header else {"text": 0, "label": 1}
    rows, bad, notes = read(path, header=header, columns=columns)
    assert (len(rows), bad, notes) == (50, [], [f"columns are parted by {shown}"])
    assert rows[1] == {"text": "text number 1", "label": "pos"}


def test_excels_own_first_line_says_what_parts_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sep=;\r\ntext;label\r\na, b;pos\r\n")
    assert read(path)[0] == [{"text": "a, b", "label": "pos"}]


def test_a_tsv_file_is_quoted_where_its_header_is_or_the_job_says_so(tmp_path: Path) -> None:
    row = '"so ""it"" is"\t"pos"\n'
    quoted = write(tmp_path / "a.tsv", f'"text"\t"label"\n{row}')
    plain = write(tmp_path / "b.tsv", f"text\tlabel\n{row}")
    expected = [{"text": 'so "it" is', "label": "pos"}]
    assert read(quoted)[0] == read(plain, quoted=True)[0] == expected
    rows, _, notes = read(plain)
    assert rows == [{"text": '"so ""it"" is"', "label": '"pos"'}]
    assert notes[0].startswith("1 fields stand in quotes") and "data.quoted: true" in notes[0]
    assert read(plain, quoted=False)[2] == []


def test_a_csv_file_may_be_said_to_have_no_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"open,neg\nx,pos\n')
    assert [row["text"] for row in read(path, quoted=False)[0]] == ['"open', "x"]


def test_a_label_is_a_value_of_the_columns_own(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "text,label\na,\n"), LABELLED)[0][0]["label"] == ""


# Tables that are written otherwise


def test_few_lines_that_may_be_rows_are_told(tmp_path: Path) -> None:
    rows = "".join(f"good day {i},guten Tag {i}\n" for i in range(300))
    path = write(tmp_path / "a.csv", f'source,target\n{rows}"open,a\nclose",b\n{rows}')
    assert "lines 302 to 303 are one row" in read(path, PAIR)[2][0]
    assert read(path, PAIR, quoted=True)[2] == []


def test_rows_that_leave_few_others_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'text,label\nfirst,other\n"open,neg\n{ROWS}close",pos\n')
    assert "lines 3 to 54 are one row" in read(path)[2][0]


def test_a_row_of_several_lines_is_told_in_a_single_column(tmp_path: Path) -> None:
    rows = "".join(f"good day {i}\n" for i in range(300))
    path = write(tmp_path / "a.csv", f'text\n{rows}"open\none\nclose"\n{rows}')
    assert "lines 302 to 304 are one row" in read(path, TEXT)[2][0]


def test_lines_without_quotes_are_no_rows_of_a_table_that_is_all_quoted(tmp_path: Path) -> None:
    rows = "".join(f'"text {i}","{i % 3}"\n' for i in range(100))
    path = write(tmp_path / "a.csv", f'"text","label"\n{rows}"10,1\n20,2\n30,0","1"\n{rows}')
    found, bad, notes = read(path)
    assert (len(found), bad, notes) == (201, [], []) and found[100]["text"] == "10,1\n20,2\n30,0"


@pytest.mark.parametrize(
    "content",
    [
        "\n" * 30 + "text,label\nfine,1\n",
        "text , label\nfine , 1\n",
        'text, label\n"fine", "1"\n',
        "\ufeff\ufefftext,label\nfine,1\n",
        "text,label\n   \nfine,1\n",
        "SEP=;\ntext;label\nfine;1\n",
    ],
)
def test_blanks_around_a_table_and_its_names_are_none_of_it(content: str, tmp_path: Path) -> None:
    rows, bad, _ = read(write(tmp_path / "a.csv", content))
    assert [(row["text"].strip(), row["label"].strip()) for row in rows] == [("fine", "1")]
    assert bad == []


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("text,label", "fine {i},pos,"),
        ("text,label,", "fine {i},pos"),
        ('"text","label"', '"{i}","fine {i}","pos"'),
    ],
)
def test_a_header_may_be_one_field_longer_or_shorter_than_all_rows(
    header: str, row: str, tmp_path: Path
) -> None:
    lines = "".join(row.format(i=i) + "\n" for i in range(1, 41))
    rows, bad, _ = read(write(tmp_path / "a.csv", f"{header}\n{lines}"))
    assert bad == []
    assert rows == [{"text": f"fine {i}", "label": "pos"} for i in range(1, 41)]


def test_a_header_below_a_title_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"Reviews of 2020\n\ntext,label\n{ROWS}")
    assert "line 3 names the columns" in refused(path)


def test_a_header_in_another_encoding_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "größe,label\nfine,1\n".encode("latin-1"))
    assert "line 1: its header is not UTF-8: byte 0xf6" in refused(path)


def test_names_are_shown_in_one_line_of_a_sensible_length(tmp_path: Path) -> None:
    names = ",".join(['"a\nb"', *(f"c{i}" for i in range(499))])
    told = refused(write(tmp_path / "a.csv", names + "\n"))
    assert len(told) < 700 and "480 more" in told


@pytest.mark.parametrize(
    ("line", "mend"),
    [("one, two,pos", "stands in quotes"), ('"said \\"hi\\", fine",pos', "is doubled")],
)
def test_a_row_that_is_set_aside_says_how_it_is_mended(
    line: str, mend: str, tmp_path: Path
) -> None:
    (bad,) = read(write(tmp_path / "a.csv", f"text,label\n{ROWS}{line}\n{ROWS}"))[1]
    assert mend in bad.reason


def test_a_tsv_whose_texts_all_stand_in_quotes_is_read_without_them(tmp_path: Path) -> None:
    rows = [('a "b" c', "pos"), ("d", "neg"), ("e, f", "pos"), ("g", "neg")]
    lines = ["text\tn\tlabel"]
    doubled = [(text.replace('"', '""'), label) for text, label in rows]
    lines += [f'"{text}"\t{i}\t"{label}"' for i, (text, label) in enumerate(doubled)]
    found, bad, notes = read(write(tmp_path / "a.tsv", "\n".join(lines) + "\n"))
    assert found == [{"text": text, "label": label} for text, label in rows]
    assert bad == notes == []
    said = 'text\tlabel\n"quoted by its author"\tpos\nnot quoted\tneg\n"again"\tpos\n'
    found, _, _ = read(write(tmp_path / "b.tsv", said))
    assert found[0]["text"] == '"quoted by its author"'
