"""JSON in the layouts that tools write, and what is no JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reading import ANSWERED, LABELLED, PAIR, TEXT, read, refused, write

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
FOUND = [{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LAYOUTS: dict[str, str] = {
    "lines": LINES,
    "list": json.dumps(ROWS),
    "pretty list": json.dumps(ROWS, indent=2),
    "one after another": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "data": json.dumps({"version": "1", "data": ROWS}),
    "any name": json.dumps({"version": 1, "items": ROWS, "meta": {"x": 1}}, indent=1),
    "columns": json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}),
    "index": json.dumps({"0": ROWS[0], "1": ROWS[1]}),
    "split": json.dumps(
        {"columns": ["text", "label"], "index": [0, 1], "data": [["a", 1], ["b", 0]]}
    ),
    "table": json.dumps({"schema": {"fields": []}, "data": ROWS}),
    "lists": json.dumps({"text": ["a", "b"], "label": [1, 0]}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_every_known_layout_is_read(kind: str, layout: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / f"a.{kind}", LAYOUTS[layout])) == (FOUND, [], [])


def test_lists_of_values_have_numbered_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([["a", 1], ["b", 0]]))
    assert read(path, header=False, columns={"text": 0, "label": 1})[0] == FOUND
    assert "data.header: false" in refused(path)


@pytest.mark.parametrize("content", [{"train": ROWS, "test": ROWS}, 3, "x", {"text": {"a": 1}}])
def test_another_layout_is_refused_with_those_that_are_known(content: Any, tmp_path: Path) -> None:
    told = refused(write(tmp_path / "a.json", json.dumps(content)))
    assert "no layout that is known" in told and "SQuAD" in told and "orients" in told


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_that_is_cut_off_is_refused_with_its_place(
    kind: str, indent: int | None, tmp_path: Path
) -> None:
    content = json.dumps(ROWS, indent=indent)[:-14]
    told = refused(write(tmp_path / f"a.{kind}", content))
    assert f"line {8 if indent else 1}, column" in told and "cut off" in told


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_last_line_that_is_cut_off_is_an_error(kind: str, tmp_path: Path) -> None:
    told = refused(write(tmp_path / f"a.{kind}", LINES + LINES[:-8]))
    assert "line 4, the last" in told and "cut off" in told


def test_a_broken_line_between_others_is_a_bad_row(tmp_path: Path) -> None:
    rows, bad, _ = read(write(tmp_path / "a.jsonl", LINES + '{"text": "c", \n' + LINES))
    assert (rows, [row.row for row in bad]) == (FOUND * 2, [3])


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("NaN", ""),
        ("null", ""),
        ('""', ""),
        ("-Infinity", "-inf"),
        ("true", "true"),
        ("1.0", "1.0"),
        ("1" + "0" * 400, "1" + "0" * 400),
    ],
)
def test_a_value_is_passed_as_text_and_what_is_none_as_blank(
    value: str, label: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", LINES + f'{{"text": "c", "label": {value}}}\n')
    assert read(path)[0][-1] == {"text": "c", "label": label}


@pytest.mark.parametrize("value", ['["x"]', "[1]", '{"a": 1}', "[" * 100_000, "9" * 5000])
def test_what_is_no_value_is_a_bad_row(value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES + f'{{"text": "c", "label": {value}}}\n' + LINES)
    rows, bad, _ = read(path)
    assert (rows, [row.row for row in bad]) == (FOUND * 2, [3])


def test_nested_columns_have_dotted_names_and_a_literal_one_wins(tmp_path: Path) -> None:
    row = {"translation": {"en": "a", "de": "b"}, "translation.de": "c"}
    path = write(tmp_path / "a.jsonl", json.dumps(row) + "\n")
    columns = {"source": "translation.en", "target": "translation.de"}
    assert read(path, PAIR, columns=columns)[0] == [{"source": "a", "target": "c"}]
    assert "translation.en, translation.de" in refused(path, PAIR)


def test_a_file_with_other_columns_is_refused_and_a_row_without_one_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES + '{"text": "c"}\n{"label": 1}\n')
    rows, bad, _ = read(path)
    assert (rows[-1], [row.reason for row in bad]) == (
        {"text": "c", "label": ""},
        ["has no 'text'"],
    )
    path = write(tmp_path / "b.jsonl", LINES.replace("text", "review"))
    assert "no column 'text'; its columns are review, label" in refused(path, LABELLED)


QUESTION = {"context": "Ann met Bob.", "question": "Who?"}
ANSWERS = [{"text": "Ann", "answer_start": 0}, {"text": "Bob", "answer_start": 8}]


@pytest.mark.parametrize(
    ("given", "starts"),
    [
        ({"answers": {"text": ["Ann", "Bob"], "answer_start": [0, 8]}}, [0, 8]),
        ({"answers": ANSWERS}, [0, 8]),
        ({"answers": ["Ann", "Bob"]}, []),
        ({"answer": ["Ann", "Bob"], "answer_start": [0, "8"]}, [0, 8]),
        ({"answer": ["Ann", "Bob"], "answer_start": "0 8.0"}, [0, 8]),
    ],
)
def test_answers_come_in_many_layouts(given: Any, starts: list[int], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(QUESTION | given) + "\n")
    expected = {**QUESTION, "answer": ["Ann", "Bob"], "answer_start": starts}
    assert read(path, ANSWERED) == ([expected], [], [])


def test_one_answer_may_be_a_text_a_number_or_none(tmp_path: Path) -> None:
    given = ["Ann", 5, None, []]
    lines = "".join(json.dumps({**QUESTION, "answer": each}) + "\n" for each in given)
    rows, _, _ = read(write(tmp_path / "a.jsonl", lines), ANSWERED)
    assert [row["answer"] for row in rows] == [["Ann"], ["5"], [], []]


def test_an_answer_that_a_csv_export_wrote_as_text_is_no_answer(tmp_path: Path) -> None:
    row = "Ann met Bob.,Who?,\"{'text': ['Ann'], 'answer_start': [0]}\"\n"
    path = write(tmp_path / "a.csv", "context,question,answers\n" + row)
    (bad,) = read(path, ANSWERED)[1]
    assert "written as text: write the rows as jsonl or parquet" in bad.reason


def test_squad_gives_all_answers_and_none_to_what_has_none(tmp_path: Path) -> None:
    asked = [
        {"question": "Who?", "answers": ANSWERS},
        {"question": "When?", "answers": [], "is_impossible": True, "plausible_answers": ANSWERS},
    ]
    content = {"data": [{"paragraphs": [{"context": "Ann met Bob.", "qas": asked}, 5]}, "odd"]}
    rows, bad, _ = read(write(tmp_path / "a.json", json.dumps(content)), ANSWERED)
    assert [(row["answer"], row["answer_start"]) for row in rows] == [
        (["Ann", "Bob"], [0, 8]),
        ([], []),
    ]
    assert [row.row for row in bad] == [3, 4]


def test_one_bad_row_of_a_list_is_set_aside_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([{"text": "a"}, 3, {"text": ["b", "c"]}]))
    rows, bad, _ = read(path, TEXT)
    assert (rows, [row.row for row in bad]) == ([{"text": "a"}, {"text": "b\nc"}], [2])


@pytest.mark.parametrize("end", ["", "\r", "\n\n"])
def test_objects_may_stand_one_after_another_on_a_line(end: str, tmp_path: Path) -> None:
    content = end.join(f'{{"text": "a {i}", "label": {i}}}' for i in range(9))
    rows, bad, _ = read(write(tmp_path / "a.jsonl", content))
    assert ([row["label"] for row in rows], bad) == ([str(i) for i in range(9)], [])


def test_lists_of_values_may_stand_on_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '["a", 1]\n["b", 2]\n')
    assert "data.header: false" in refused(path)
    rows = read(path, header=False, columns={"text": 0, "label": 1})[0]
    assert rows == [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ('{"text": "a", "label": 1},', "remove the comma"),
        ("{'text': 'a', 'label': 1}", "json.dumps"),
    ],
)
def test_a_line_that_is_no_json_says_how_it_is_mended(line: str, mend: str, tmp_path: Path) -> None:
    good = '{"text": "a", "label": 1}\n'
    (bad,) = read(write(tmp_path / "a.jsonl", f"{good}{line}\n{good}"))[1]
    assert mend in bad.reason and "line 1" not in bad.reason


@pytest.mark.parametrize("content", ["[]", " \n\n"])
def test_a_file_without_rows_is_told(content: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.json", content))[2] == ["holds no rows"]
