"""Keeping the checkpoints of a training that runs, whoever trains."""

import shutil
import threading
import time
from pathlib import Path


class Watch:
    """Keeps each version of a file that appears: a training deletes or replaces the older ones.

    `kept` has the copies, oldest first, with the times at which the originals were whole.
    """

    def __init__(self, folder: Path, pattern: str, beside: str, kept: Path) -> None:
        self.folder, self.pattern, self.beside = folder, pattern, beside
        self.copies = kept
        self.kept: list[tuple[Path, float]] = []
        self._seen: set[tuple[str, int]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        shutil.rmtree(self.copies, ignore_errors=True)
        self.copies.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look(ended=True)
        self.kept.sort(key=lambda each: each[1])

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self._look()

    def _look(self, ended: bool = False) -> None:
        for path in self.folder.glob(self.pattern):
            try:
                modified = path.stat().st_mtime_ns
                whole = ended or not _is_young(modified)
                if (str(path), modified) in self._seen or not whole:
                    continue
                source = path.with_name(self.beside) if self.beside else path
                copy = self.copies / str(len(self.kept))
                shutil.copyfile(source, copy)
            except OSError:  # it was deleted meanwhile, for a newer one
                continue
            self._seen.add((str(path), modified))
            self.kept.append((copy, modified / 1e9))


def _is_young(modified: int) -> bool:
    """Whether it may still be written to: nanoGPT writes in place."""
    return time.time() - modified / 1e9 < 0.2
