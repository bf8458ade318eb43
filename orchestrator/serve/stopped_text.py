"""A text that comes piece by piece, and ends before the first stop text."""

from collections.abc import Sequence


class StoppedText:
    """What `add` returns is settled: what a stop text may begin with is held back.

    Of several stop texts that one counts which is complete first, so the result does not depend on
    where the pieces begin.

    Attributes:
        stopped: whether a stop text came.
        settled: the number of characters returned.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self.settled = 0
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def add(self, new: str, is_last: bool = False) -> str:
        """Append a piece; returns the text that is settled now, all of it after the last piece."""
        text = self._held + new
        found = [
            (begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0
        ]
        if found:
            self.stopped, length = True, min(found)[1]
        else:
            length = len(text) if is_last else self._settled_length(text)
        self._held = text[length:]
        self.settled += length
        return text[:length]

    def _settled_length(self, text: str) -> int:
        """The length of a text without the end that a stop text may begin with."""
        for begin in range(max(0, len(text) - self._longest + 1), len(text)):
            end = text[begin:]
            if any(stop.startswith(end) for stop in self._stops):
                return begin
        return len(text)
