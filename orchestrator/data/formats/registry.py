"""The source formats. A new format is a file beside this one, and a line here."""

from orchestrator.data.formats import json_files, parquet_files, python_files, tables, texts
from orchestrator.data.formats.format import Format

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        texts.TXT,
        json_files.JSONL,
        json_files.JSON,
        tables.CSV,
        tables.TSV,
        parquet_files.PARQUET,
        python_files.PYTHON,
    )
}


def offered() -> list[str]:
    """The names of formats for `data.format`, in the order above."""
    return [each.name for each in FORMATS.values() if each.is_offered]


def format_of(suffix: str) -> Format | None:
    """The format of files with a suffix, in lower case and without `.`."""
    return next((f for f in FORMATS.values() if f.is_offered and suffix in f.suffixes), None)
