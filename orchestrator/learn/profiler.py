"""What some steps of a training spend their time on, by torch's profiler.

The job asks for it: `orchestrator train job.yaml train.profile_steps=10`.
"""

import gzip
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from orchestrator.learn import operators
from orchestrator.storage.folder import Folder

WARM_UP_STEPS = 5  # after each start of a training, while caches are cold and torch may compile


class StepProfiler:
    """Records some steps of this process, then writes a trace and a table of operators.

    Recording changes no number of the training. A recorded step takes longer.
    """

    def __init__(self, steps: int, folder: Folder, event: Callable[..., None]) -> None:
        """`event` is called as a reporter's, once the files are written."""
        self._steps_left = steps
        self._warm_up_left = WARM_UP_STEPS
        self._folder = folder
        self._event = event
        self._profile: profile | None = None
        self._label: record_function | None = None  # of the step that is being recorded
        self._step = self._first_step = 0
        self._writer: threading.Thread | None = None

    def step_done(self, step: int) -> None:
        """To be called after each step, by the thread that trains."""
        self._step = step
        if self._profile is not None:
            self._end_label()
            self._steps_left -= 1
            if self._steps_left == 0:
                self._end(self._profile)
            else:
                self._begin_label()
        elif self._steps_left:
            self._warm_up_left -= 1
            if self._warm_up_left == 0:
                self._first_step = step
                gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
                # acc_events would have torch make an object of each event: 0.1 ms each.
                self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], acc_events=False)
                self._profile.start()
                self._begin_label()

    def close(self) -> None:
        """Wait for the files; where the training ended early, write what is recorded so far."""
        if self._profile is not None:
            self._end_label()
            self._end(self._profile)
        elif self._steps_left:
            reason = f"the training ended within the {WARM_UP_STEPS} steps of warm-up"
            self._event("not profiled", reason=reason)
        if self._writer is not None:
            self._writer.join()

    def _begin_label(self) -> None:
        self._label = record_function("training step")
        self._label.__enter__()

    def _end_label(self) -> None:
        assert self._label is not None
        self._label.__exit__(None, None, None)

    def _end(self, recorded: profile) -> None:
        recorded.stop()
        self._profile, self._steps_left = None, 0
        self._writer = threading.Thread(target=self._write, args=(recorded,), name="profile")
        self._writer.start()  # other workers wait for this one: files are written beside the steps

    def _write(self, recorded: profile) -> None:
        name, steps = f"step-{self._step:06d}", self._step - self._first_step
        try:
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary, f"{name}.json")
                recorded.export_chrome_trace(str(path))
                self._folder.write(f"{path.name}.gz", gzip.compress(path.read_bytes(), 5))
                command = [sys.executable, "-P", operators.__file__, str(path)]
                self._folder.write(f"{name}.txt", subprocess.check_output(command))  # noqa: S603
        except Exception as error:  # no training ends because its profile cannot be written
            self._event("not profiled", reason=f"{type(error).__name__}: {error}")
            return
        trace, table = (f"{self._folder}/{name}.{suffix}" for suffix in ("json.gz", "txt"))
        self._event("profiled", steps=steps, trace=trace, operators=table)
