"""How stages tell of their progress: an interface, so that no stage knows of terminals."""

from typing import Any, Protocol


class Progress(Protocol):
    """One activity at a time, with a count where its end is known."""

    def start(self, name: str, total: float | None, unit: str) -> None:
        """Begin an activity of `total` units; None where nobody knows how many."""

    def advance(self, amount: float) -> None:
        """So many units more are done."""

    def show(self, values: dict[str, Any]) -> None:
        """The latest figures: loss, lr and so on."""

    def finish(self) -> None:
        """The activity is over."""
