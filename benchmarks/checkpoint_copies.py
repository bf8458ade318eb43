"""Keeps copies of all checkpoints that a running training writes, by this engine or a peer."""

import shutil
import threading
import time
from pathlib import Path


class CheckpointCopies:
    """Copies each new version of a file while a training runs, since the training deletes or
    replaces older ones.

    `copies` has the path of each copy, oldest first, and the time at which its original was
    complete.
    """

    def __init__(self, folder: Path, pattern: str, weights: str, target: Path) -> None:
        """
        Args:
            folder: the training's folder.
            pattern: a glob in `folder`; a matching file that appears or changes is a checkpoint.
            weights: the file beside it to copy; "" copies the matching file.
            target: the folder of the copies, emptied at the start.
        """
        self.folder, self.pattern, self.weights = folder, pattern, weights
        self.target = target
        self.copies: list[tuple[Path, float]] = []
        self._seen: set[tuple[str, int]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CheckpointCopies":
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._copy_new(ended=True)
        self.copies.sort(key=lambda copy: copy[1])

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self._copy_new()

    def _copy_new(self, ended: bool = False) -> None:
        for path in self.folder.glob(self.pattern):
            try:
                modified = path.stat().st_mtime_ns
                is_complete = ended or not _is_recent(modified)
                if (str(path), modified) in self._seen or not is_complete:
                    continue
                source = path.with_name(self.weights) if self.weights else path
                copy = self.target / str(len(self.copies))
                shutil.copyfile(source, copy)
            except OSError:  # the training deleted the file, which is too old by now
                continue
            self._seen.add((str(path), modified))
            self.copies.append((copy, modified / 1e9))


def _is_recent(modified: int) -> bool:
    """Whether a file, modified at this time in ns, may still be written to: nanoGPT overwrites its
    checkpoint in place."""
    return time.time() - modified / 1e9 < 0.2
