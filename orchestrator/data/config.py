"""The `data:` section of a job: the files, and how their rows become the task's columns."""

import contextlib
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from orchestrator.data.formats.registry import offered
from orchestrator.data.reading import Reading

FORMATS = offered()  # by name
if TYPE_CHECKING:
    FormatName = str  # type checkers cannot see the registry's content
else:
    FormatName = Literal[*FORMATS]

Path = Annotated[str, Field(min_length=1)]
Sources = (
    Path
    | Annotated[list[Path], Field(min_length=1)]
    | Annotated[dict[str, Path], Field(min_length=2)]
)


class DataConfig(BaseModel):
    """The `data:` section of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Sources = Field(
        description="python-stdlib, or paths, folders, globs or URIs (file://, s3://, gs://) of "
        f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} files, each optionally .gz or .zst; or of "
        "text files that belong together line by line, by column: {source: a.en, target: a.de}"
    )
    validation_source: Sources | None = Field(
        None, description="rows to validate on, in place of a share of the source"
    )
    test_source: Sources | None = Field(
        None, description="rows to test on, in place of a share of the source"
    )
    format: FormatName | None = Field(
        None, description="of all files; without it, their names tell"
    )
    header: bool = Field(True, description="csv and tsv begin with names; else columns are 0, 1, …")
    columns: dict[str, str | int] = Field(
        {},
        description="the files' names of the task's columns, such as {text: sentence}; $file and "
        "$folder are every file's name and its folder's",
    )
    lines: bool | None = Field(
        None, description="each line of a txt file is a row; without it, the task knows"
    )
    validation_fraction: float = Field(0.02, gt=0, lt=0.5, description="share of the bytes")
    test_fraction: float = Field(0.02, gt=0, lt=0.5, description="share of the bytes")
    encoding: str | None = Field(
        None, description="of text files, such as latin-1; without it UTF-8, or as their BOM says"
    )
    quoted: bool | None = Field(
        None,
        description="fields of csv and tsv files may stand in quotation marks; without it, "
        "those of csv files may, and those of tsv files whose header does",
    )
    max_bad_rows: int | None = Field(
        None,
        ge=0,
        description="more rows than this that cannot be read fail the run; without it, more than "
        "1 % of a split's rows, where these are more than 10 or a tenth of it",
    )
    max_document_bytes: int = Field(
        16_384, ge=256, description="longer txt files are cut at a blank line into documents"
    )

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None:
            with contextlib.suppress(UnicodeDecodeError):  # an encoding of more bytes per character
                try:
                    b"x".decode(name)
                except LookupError:
                    known = "utf-8, latin-1, cp1252, utf-16"
                    raise ValueError(f"{name!r} is no encoding; some are {known}") from None
        return name

    def reading(
        self, columns: dict[str, str], optional: tuple[str, ...] = (), lines: bool = False
    ) -> Reading:
        """How the rows of these files are read for a task with such columns.

        `lines` says whether a row of a txt file is a line where `data.lines` does not say.
        """
        return Reading(
            columns=columns,
            optional=optional,
            names=self.columns,
            lines=lines if self.lines is None else self.lines,
            header=self.header,
            encoding=self.encoding,
            quoted=self.quoted,
            max_document_bytes=self.max_document_bytes,
        )
