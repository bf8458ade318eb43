"""Records trials while they run, and reads users' requests to stop them."""

import contextlib
import time
from typing import Any

import ray.tune
from ray.tune.experiment import Trial as RayTrial

from orchestrator.errors import last_line
from orchestrator.progress import Progress
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Metric
from orchestrator.tune.records import REQUESTS, SWEEP_FILE, Exploit, SweepRecord, Trial
from orchestrator.tune.search import Search
from orchestrator.tune.writer import Writer

WRITE_SECONDS = 1.0  # between writes of one trial that runs
REQUEST_SECONDS = 0.5  # between checks for requests


class Recorder(ray.tune.Callback):
    """Tune's callback: writes records to the sweep's folder, and figures to the terminal."""

    def __init__(
        self,
        record: SweepRecord,
        folder: Folder,
        search: Search,
        metric: Metric,
        progress: Progress,
    ) -> None:
        self.record = record
        self.folder = folder
        self.search = search
        self.metric = metric
        self.progress = progress
        self.asked: set[int] = set()  # trials that a user wants to stop
        self.stop_asked = False
        self._before = record.seconds  # of earlier starts of the sweep
        self._began: float | None = None  # when the first trial started; before, processes start
        self._running: dict[int, Trial] = {}
        self._since: dict[int, float] = {}  # each one's start, less its time before
        self._written: dict[int, float] = {}
        self._looked = 0.0
        self._requests = folder / REQUESTS
        self._writer = Writer(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for its own restore, which is never used

    @property
    def seconds(self) -> float:
        """For how long trials ran, over all starts of the sweep."""
        since = time.monotonic() - self._began if self._began is not None else 0.0
        return self._before + since

    @property
    def out_of_time(self) -> bool:
        minutes = self.record.minutes
        return minutes is not None and self.seconds >= 60 * minutes

    def begin(self, trial: Trial) -> None:
        """A trial is about to start, or to continue after an interruption."""
        self._running[trial.number] = trial

    def setup(self, *_: Any, **__: Any) -> None:
        self._requests.delete()  # requests to an earlier start no longer apply

    def on_step_begin(self, iteration: int, trials: list[RayTrial], **_: Any) -> None:
        if time.monotonic() - self._looked < REQUEST_SECONDS:
            return
        self._looked = time.monotonic()
        for name in self._requests.names():
            if name == "stop":
                self.stop_asked = True
            elif name.removeprefix("stop-").isdigit():
                self.asked.add(int(name.removeprefix("stop-")))

    def on_trial_start(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **_: Any
    ) -> None:
        number = trial.config["number"]
        record = self._running[number]
        now = time.monotonic()
        self._began = self._began or now
        if record.started == 0.0:
            record.started = time.time()
        self._since[number] = now - record.seconds
        self._note_exploit(record, trial.config)
        self._write(record)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[RayTrial],
        trial: RayTrial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        record = self._running[trial.config["number"]]
        record.host = result.get("hostname", "")
        record.seconds = time.monotonic() - self._since[record.number]
        if "failure" in result:
            record.reason = result["failure"]["reason"]
            record.traceback = result["failure"]["traceback"]
            return
        points = [
            {
                "step": point["step"],
                "seconds": round(record.seconds - point["age"], 3),
                **point["metrics"],
            }
            for point in result["points"]
        ]
        record.step, record.metrics = result["step"], result["points"][-1]["metrics"]
        # A trial that was interrupted comes again to steps that it had validated before.
        first = points[0]["step"]
        record.curve = [point for point in record.curve if point["step"] < first] + points
        if time.monotonic() - self._written.get(record.number, 0.0) >= WRITE_SECONDS:
            self._write(record)
        self._show()

    def on_trial_complete(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **_: Any
    ) -> None:
        record = self._running[trial.config["number"]]
        if record.traceback or record.reason:
            self._end(record, "failed")
        elif record.step >= self.record.steps:
            self._end(record, "finished")
        elif record.number in self.asked:
            record.reason = "stopped on request"
            self._end(record, "stopped")
        elif self.stop_asked:
            self._write(record)  # its state stays "running": the next start continues it
        elif self.out_of_time:
            self._cut_off(record)
        else:
            record.reason = f"{self.record.scheduler} at step {record.step}"
            self._end(record, "stopped early")

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **_: Any
    ) -> None:
        record = self._running[trial.config["number"]]
        text = ""
        if trial.error_file:
            with contextlib.suppress(OSError), open(trial.error_file) as file:
                text = file.read().strip()
        record.reason, record.traceback = last_line(text) if text else "its process was lost", text
        self._end(record, "failed")

    def flush(self) -> None:
        """Return when the records of all ended trials are written."""
        self._writer.flush()

    def close(self, state: str, error: str = "") -> None:
        """Record how the sweep ended. Trials still running at its time limit end with it."""
        for record in list(self._running.values()):
            if self.out_of_time and not self.stop_asked and record.started:
                self._cut_off(record)
        self.record.state, self.record.error = state, error  # type: ignore[assignment]
        self.record.seconds = self.seconds
        self._writer.close()
        self.record.save(self.folder)

    def _cut_off(self, record: Trial) -> None:
        record.reason = f"the sweep's {self.record.minutes:g} minutes are over"
        self._end(record, "stopped")

    def _end(self, record: Trial, state: str) -> None:
        record.state, record.ended = state, time.time()  # type: ignore[assignment]
        if record.number in self._since:
            record.seconds = time.monotonic() - self._since[record.number]
        self._running.pop(record.number, None)
        self._write(record)
        self.search.ended(record)
        self.record.seconds = self.seconds
        self._writer.put(SWEEP_FILE, self.record.model_dump_json(indent=1).encode())
        self.progress.advance(1)
        self._show()

    def _note_exploit(self, record: Trial, config: dict[str, Any]) -> None:
        """Record that population based training gave the trial weights and values of another."""
        if config["overrides"] == record.overrides:
            return
        donor = self._running.get(config["donor"]) or self.search.trials[config["donor"]]
        if donor.step >= self.record.steps:  # no step is left for these values
            return
        record.overrides = config["overrides"]
        record.reason = record.traceback = ""  # a failed trial goes on with the donor's weights
        record.exploits.append(
            Exploit(step=donor.step, donor=donor.number, overrides=record.overrides)
        )

    def _write(self, record: Trial) -> None:
        self._written[record.number] = time.monotonic()
        self._writer.put(record.file, record.model_dump_json().encode())

    def _show(self) -> None:
        """Show the best value so far."""
        values = [
            trial.metrics[self.metric.name]
            for trial in self.search.trials.values()
            if self.metric.name in trial.metrics and trial.state != "failed"
        ]
        if values:
            best = min if self.metric.mode == "min" else max
            self.progress.show({f"best {self.metric.name}": best(values)})
