"""Splits that files name, as Hugging Face's libraries take them: `test-00000-of-00001.parquet`."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from orchestrator.artifact import Split
from orchestrator.listing import few

WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
LETTERS = re.compile(r"[^\W\d_]+")


def splits_by_name(uris: Sequence[str], roots: list[str]) -> dict[str, Split | None]:
    """The split that each file's name or, before that, its folder's says, or None.

    Nothing at all where no file is named for training, or none for anything else.
    """
    ways: tuple[Callable[[str], Split | None], ...] = (
        lambda uri: _of_folders(uri, roots),
        lambda uri: _of_word(PurePosixPath(uri).name),
    )
    for way in ways:
        found = {uri: way(uri) for uri in uris}
        named = set(found.values()) - {None}
        if "train" in named and len(named) > 1:
            return found
    return {}


def told(splits: dict[str, Split | None]) -> str:
    """What to tell of splits that were found so."""
    counts = Counter(splits.values())
    first = counts["train"]
    parts = [f"{first:,} file{'s' if first > 1 else ''} for training"]
    uses: dict[Split, str] = {"validation": "validation", "test": "testing"}
    parts += [f"{counts[split]:,} for {use}" for split, use in uses.items() if counts[split]]
    left = [PurePosixPath(uri).name for uri, split in splits.items() if split is None]
    out = f"; left out, since their names tell none: {few(left)}" if left else ""
    return f"splits by their names: {', '.join(parts)}{out}"


def _of_folders(uri: str, roots: list[str]) -> Split | None:
    """Of the folders between a source and the file, the last one that says a split."""
    root = max((root for root in roots if uri.startswith(f"{root}/")), key=len, default="")
    folders = PurePosixPath(uri.removeprefix(root).lstrip("/")).parts[:-1] if root else ()
    return next((split for f in reversed(folders) if (split := _of_word(f)) is not None), None)


def _of_word(name: str) -> Split | None:
    """The split whose word stands in a name between what are no letters; None if it is not one."""
    found = {WORDS[word] for word in LETTERS.findall(name.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None
