"""The kinds of columns. A new kind is a file beside this one, and a line here."""

from orchestrator.data.kinds import answers, texts, values
from orchestrator.data.kinds.kind import Kind
from orchestrator.errors import UserError, did_you_mean

KINDS: dict[str, Kind] = {
    each.name: each
    for each in (
        texts.TEXT,
        values.VALUE,
        answers.ANSWERS,
        answers.STARTS,
    )
}


def check_kinds(columns: dict[str, str]) -> None:
    """Raises UserError if a task's column has an unknown kind."""
    for column, kind in columns.items():
        if kind not in KINDS:
            advice = did_you_mean(kind, KINDS) or f"known are {', '.join(KINDS)}"
            raise UserError(f"the task's column {column!r} has the unknown kind {kind!r}; {advice}")
