"""The records of a sweep: a file for the sweep and one for each trial, written while they run.

A rerun of a killed sweep, the report and the dashboard read these and nothing else. A request to a
running sweep is a file in its folder.
"""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.storage.artifact import Precision
from orchestrator.storage.folder import Folder

SWEEP_FILE = "sweep.json"
REQUESTS = "requests"  # folder: `stop` ends the sweep, `stop-00003` one trial
TRIAL_NAME = re.compile(r"trial-(\d{5,})\.json")

TrialState = Literal["running", "finished", "stopped early", "stopped", "failed"]
SweepState = Literal["running", "finished", "stopped", "failed"]

Point = dict[str, float]


class Exploit(BaseModel):
    """In population based training: the trial continued from another trial's weights."""

    model_config = ConfigDict(frozen=True)

    step: int
    donor: int = Field(description="number of the trial whose weights and values it took")
    overrides: dict[str, Any] = Field(description="the trial's own from then on, perturbed")


class Trial(BaseModel):
    """One trial so far."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    number: int
    configuration: int = Field(description="the same for all repeats of a configuration")
    repeat: int = Field(0, description="0 with the job's seed, others with seeds of their own")
    overrides: dict[str, Any] = Field(description="of the job, by dotted key")
    state: TrialState = "running"
    started: float = Field(0.0, description="Unix time of its latest start")
    ended: float | None = None
    seconds: float = Field(0.0, description="that it ran, over all of its starts")
    host: str = ""
    step: int = 0
    metrics: Point = Field(default_factory=dict, description="of its last validation")
    curve: list[Point] = Field(
        default_factory=list, description="of each validation: step, seconds, and the metrics"
    )
    exploits: list[Exploit] = Field(default_factory=list)
    reason: str = Field("", description="why it ended early, or failed, in one line")
    traceback: str = ""

    @property
    def file(self) -> str:
        return f"trial-{self.number:05d}.json"


class SweepRecord(BaseModel):
    """The sweep itself: its settings and its state."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    name: str = Field(description="of the job")
    task: str
    metric: str
    mode: Literal["min", "max"]
    space: dict[str, dict[str, Any]] = Field(
        description="by key, as in the job: {'loguniform': [0.001, 0.1]}, also choice and so on"
    )
    search: str
    scheduler: str
    trials: int = Field(description="configurations that will be tried")
    repeats: int = 1
    steps: int = Field(description="of a trial that is not stopped")
    minutes: float | None = None
    concurrent: int = Field(1, description="trials that run at the same time")
    cpus: float = Field(description="of each trial")
    gpus: float = 0.0
    precision: Precision | None = Field(
        None, description="of the trials where neither job nor space says it, once it is chosen"
    )
    notices: list[str] = Field(
        default_factory=list, description="for the user, such as why this precision"
    )
    state: SweepState = "running"
    started: float = Field(0.0, description="Unix time of its first start")
    seconds: float = Field(0.0, description="that it ran, over all of its starts")
    error: str = ""

    def save(self, folder: Folder) -> None:
        folder.write(SWEEP_FILE, self.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, folder: Folder) -> Self | None:
        """The record in a sweep's folder; None where no sweep has begun there."""
        try:
            return cls.model_validate_json(folder.read(SWEEP_FILE))
        except (FileNotFoundError, NotADirectoryError):
            return None


def read_trials(folder: Folder) -> dict[int, Trial]:
    """All trials of a sweep's folder, by number."""
    trials = {}
    for name in folder.names():
        if TRIAL_NAME.fullmatch(name):
            trial = Trial.model_validate_json(folder.read(name))
            trials[trial.number] = trial
    return trials


def request_stop(folder: Folder, number: int | None = None) -> None:
    """Ask a running sweep to stop, which may continue later, or end one of its trials for good."""
    name = "stop" if number is None else f"stop-{number:05d}"
    (folder / REQUESTS).write(name, b"")


def earlier_trials(folder: Folder) -> list[Trial]:
    """The trials of other sweeps beside this one's folder."""
    beside = Folder(folder.uri.rsplit("/", 1)[0])
    names = [name for name in beside.names() if name.startswith("tune-") and name != folder.name]
    return [trial for name in names for trial in read_trials(beside / name).values()]
