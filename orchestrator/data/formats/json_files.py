"""JSON and JSON lines, in all known layouts, row by row."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from orchestrator.data.columns import MISSING, check_names, value_of
from orchestrator.data.formats.decoding import lines_of, open_text
from orchestrator.data.formats.format import Format, Rows
from orchestrator.data.heads import PAGES, Head
from orchestrator.data.kinds.kind import type_name
from orchestrator.data.reading import BadRow, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.undecoded import undecoded
from orchestrator.errors import UserError, first_line, printable

FIRST_ROWS = 100  # checked for columns: a row may lack a column that is null
MOST_DIGITS = 4300  # of an integer: Python's limit
LAYOUTS = (
    "one object a line, a list of objects, an object with one such list (as 'data' or any name), "
    "SQuAD's, or pandas' orients (records, columns, index, split, table, list; values with "
    "data.header: false)"
)


def _check(file: SourceFile, reading: Reading) -> None:
    """Raises UserError if a file's first rows show that it cannot be read."""
    for _ in itertools.islice(_rows(file, reading), 1):
        pass


def _rows(file: SourceFile, reading: Reading) -> Rows:
    with open_text(file, reading, Head(refused=PAGES)) as (text, notes):
        yield from ((0, note) for note in notes)
        lines = lines_of(text, file, reading)
        first = _next_line(lines)
        second = _next_line(lines) if first is not None else None
        if first is None:
            return
        if _is_lines(file.kind, first[1], second[1] if second is not None else ""):
            if first[1].lstrip().startswith("["):
                _check_named(file, reading)
            begin = [first] if second is None else [first, second]
            rows = _read_lines(itertools.chain(begin, lines), file, reading)
        else:
            begun = first[1] + (second[1] if second is not None else "")
            rows = enumerate(_whole(begun, first[0], text, file, reading), start=1)
        yield from _with_columns(rows, file, reading)


def _next_line(lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
    return next((each for each in lines if each[1].strip()), None)


def _is_lines(kind: str, first: str, second: str) -> bool:
    """Whether a file has one object per line, by its first two lines that are not blank."""
    first, second = first.strip(), second.strip()
    if first.startswith("["):
        return _is_a(list, first) and _is_a(list, second)
    try:
        value = json.loads(first)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(first)  # at the line's end, as in an object of many lines
        # Several objects on one line, or separated by carriage returns.
        are_several = not second and first[error.pos : error.pos + 1] == "{"
        return _is_a(dict, second) or (kind == "jsonl" and not is_cut and not are_several)
    except (ValueError, RecursionError):
        return kind == "jsonl" or _is_a(dict, second)
    if not isinstance(value, dict):
        return kind == "jsonl"
    # An object alone may be a layout of its own.
    return bool(second)


def _is_a(kind: type, line: str) -> bool:
    try:
        return isinstance(json.loads(line), kind)
    except (ValueError, RecursionError):
        return False


def _read_lines(lines: Iterable[tuple[int, str]], file: SourceFile, reading: Reading) -> Rows:
    for number, line in lines:
        if not line.strip():
            continue
        reason = undecoded(line, reading.encoding)
        try:
            if reason is None:
                row = json.loads(line)
                is_list = isinstance(row, list) and not reading.header
                yield number, _numbered(row) if is_list else row
                continue
            reason = f"is not {reason}"
        except json.JSONDecodeError as error:
            reason = f"is not JSON: {error.msg} at column {error.colno}{_mend(line, error)}"
        except RecursionError as error:
            reason = f"is not JSON: {first_line(error)}"
        except ValueError:
            reason = f"is not JSON of rows: a number has more than {MOST_DIGITS:,} digits"
        if not line.endswith(("\n", "\r")) and not line.rstrip().endswith("}"):
            raise UserError(
                f"{file.uri}: line {number}, the last, ends within its object: the file is cut "
                f"off; download or write it again, or delete that line"
            )
        yield number, BadRow(file.uri, number, reason)


def _mend(line: str, error: json.JSONDecodeError) -> str:
    if line[error.pos :].strip() == ",":
        return ": remove the comma at its end"
    if line.startswith("{'"):
        return ": it is written by Python's repr, write it with json.dumps"
    return ""


def _numbered(values: list[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def _check_named(file: SourceFile, reading: Reading) -> None:
    """Raises UserError if rows are lists of values, but columns need names."""
    if reading.header:
        raise UserError(
            f"{file.uri}: is a list of lists, whose columns have no names: set "
            f"data.header: false, and data.columns by number"
        )


def _with_columns(rows: Rows, file: SourceFile, reading: Reading) -> Rows:
    """The same rows, after a check that the first of them have the required columns.

    Raises:
        UserError: where not one of them has one of these.
    """
    head = list(itertools.islice(rows, FIRST_ROWS))
    objects = [row for _, row in head if isinstance(row, dict)]
    if objects:
        check_names(objects, file.uri, reading, "")
    yield from head
    yield from rows


def _whole(
    begun: str, line: int, text: IO[str], file: SourceFile, reading: Reading
) -> Iterator[Any]:
    """The rows of one JSON value, or of several consecutive values."""
    content = begun + text.read()
    try:
        try:
            value = json.loads(content)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data") or not begun.startswith("{"):
                raise
            yield from _several(content)
            return
        except ValueError:  # a number with too many digits
            value = json.loads(content, parse_int=_whole_number)
    except RecursionError:
        raise UserError(f"{file.uri}: is nested too deeply for JSON of rows") from None
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        is_cut = error.msg.startswith("Unterminated") or not content[error.pos :].strip()
        cause = f"{'the file is cut off' if is_cut else 'it is damaged'}, or no {file.kind}"
        raise UserError(
            f"{file.uri}: {where}: is not JSON: {error.msg}: {cause}: download or write it again"
        ) from None
    yield from _of_value(value, file, reading)


def _several(content: str) -> Iterator[Any]:
    """Consecutive objects of several lines each, as jq writes them."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(content):
        row, place = decoder.raw_decode(content, place)
        yield row
        while place < len(content) and content[place].isspace():
            place += 1


def _whole_number(digits: str) -> Any:
    return int(digits) if len(digits) <= MOST_DIGITS else float("inf")


def _of_value(value: Any, file: SourceFile, reading: Reading) -> Iterator[Any]:
    if isinstance(value, list):
        return _listed(value, file, reading)
    rows = _of_object(value, file, reading) if isinstance(value, dict) else None
    if rows is None:
        names = (
            f" with {printable(', '.join(map(str, value))[:200])}"
            if isinstance(value, dict)
            else ""
        )
        what = type_name(value)
        raise UserError(f"{file.uri}: is {what}{names}, and no layout that is known: {LAYOUTS}")
    return rows


def _listed(rows: list[Any], file: SourceFile, reading: Reading) -> Iterator[Any]:
    """Rows as objects; without a header, lists become objects with numbers as names."""
    if rows and all(isinstance(row, list) for row in rows):
        _check_named(file, reading)
        return map(_numbered, rows)
    return iter(rows)


def _of_object(content: dict[str, Any], file: SourceFile, reading: Reading) -> Iterator[Any] | None:
    """The rows of one object in a known layout."""
    data = content.get("data")
    if isinstance(data, list):
        if any(isinstance(each, dict) and "paragraphs" in each for each in data):
            return _squad(data)
        if isinstance(content.get("columns"), list):  # pandas' split
            return (dict(zip(map(str, content["columns"]), row, strict=False)) for row in data)
        if not data or any(isinstance(each, dict) for each in data):
            return iter(data)
    if _has_all(content, reading):
        values = [content[name] for name in content]
        if all(isinstance(value, dict) for value in values):  # pandas' columns
            keys = dict.fromkeys(key for value in values for key in value)
            return ({n: v[key] for n, v in content.items() if key in v} for key in keys)
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if len(lists) == len(content):
            return _columns(lists, file)
        return iter([content])  # a single row
    rows = list(content.values())
    if rows and all(isinstance(row, dict) for row in rows) and _has_all(rows[0], reading):
        return iter(rows)  # pandas' index
    lists = {n: v for n, v in content.items() if isinstance(v, list)}
    objects = [v for v in lists.values() if v and isinstance(v[0], dict)]
    if len(objects) == 1:
        return iter(objects[0])
    is_row = file.kind == "jsonl" or not any(isinstance(v, list | dict) for v in rows)
    return iter([content]) if is_row else None


def _has_all(row: dict[str, Any], reading: Reading) -> bool:
    return all(value_of(row, column, reading) is not MISSING for column in reading.needed)


def _columns(lists: dict[str, list[Any]], file: SourceFile) -> Iterator[Any]:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {count:,}" for name, count in lengths.items())
        raise UserError(f"{file.uri}: its columns are of unequal length: {counts} values")
    return (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))


def _squad(articles: list[Any]) -> Iterator[Any]:
    """Rows of SQuAD (Rajpurkar et al. 2016): articles, paragraphs, questions with all answers."""
    for article in articles:
        for paragraph in _list_of(article, "paragraphs"):
            for question in _list_of(paragraph, "qas"):
                if not (isinstance(paragraph, dict) and isinstance(question, dict)):
                    yield question
                    continue
                answers = question.get("answers", [] if question.get("is_impossible") else MISSING)
                row = {**question, "context": paragraph.get("context")}
                if answers is not MISSING:
                    row["answers"] = answers or []
                yield row


def _list_of(content: Any, name: str) -> list[Any]:
    """The list under a name of an object; anything else is a bad row."""
    if not isinstance(content, dict):
        return [content]
    listed = content.get(name)
    return listed if isinstance(listed, list) else []


JSONL = Format("jsonl", ("jsonl", "ndjson"), _check, _rows)
JSON = Format("json", ("json",), _check, _rows, may_be_settings=True)
