"""The files of Python's standard library, `data.source: python-stdlib`."""

import tokenize

from orchestrator.data.formats.format import Format, Rows
from orchestrator.data.formats.texts import check_one_column
from orchestrator.data.reading import BadRow, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.errors import UserError, first_line


def _rows(file: SourceFile, reading: Reading) -> Rows:
    """One row: the file, decoded as it declares (PEP 263)."""
    try:
        with tokenize.open(file.uri) as stream:
            yield 1, {reading.text_column: stream.read()}
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        yield 0, BadRow(file.uri, 0, f"cannot be decoded: {first_line(error)}")
    except OSError as error:
        raise UserError(f"{file.uri}: cannot be read: {first_line(error)}") from error


PYTHON = Format("py", ("py",), check_one_column, _rows, is_offered=False)
