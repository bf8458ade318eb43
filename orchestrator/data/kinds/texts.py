"""`text`: a text. A list of texts, such as paragraphs or lines, is joined."""

from typing import Any

from orchestrator.data.arrow_types import is_list, is_text
from orchestrator.data.kinds.kind import Kind, type_name
from orchestrator.data.undecoded import valid


def _read(value: Any, encoding: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if isinstance(value, bytes):
        try:
            value = value.decode(encoding or "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(value, str):
        raise ValueError(f"is {type_name(value)}, not text")
    return valid(value, encoding)


def _suits(type_: Any) -> bool:
    return is_text(type_) or (is_list(type_) and is_text(type_.value_type))


TEXT = Kind(
    name="text",
    noun="text",
    read=_read,
    suits=_suits,
    mend="write it as text, or name another column with data.columns",
    is_required=True,
)
