"""One worker of a training: `fit()` in a process of Ray Train's, and its line to the supervisor."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from orchestrator.errors import DivergedError, StageError
from orchestrator.job.cost import compiles
from orchestrator.job.job import Job, find_task
from orchestrator.learn.agreement import Directive
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.fit import fit
from orchestrator.learn.profiler import StepProfiler
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.train import spares
from orchestrator.train.failures import Decision, PreemptedError, decide, explain
from orchestrator.train.supervisor import Beat, Event, Figures

BEAT_SECONDS = 1.0
SPARE_SECONDS = 4.0  # of training before a spare is started: the start itself is busy enough
MEETING_SECONDS = 10.0
PATIENT = timedelta(hours=1)  # for what takes as long as the storage does
GRACE = 10.0  # seconds for which the supervisor is first to end a worker that hangs, and names it
COMPILING = 300.0  # in place of them where one worker's compiler may be done before another's


def work(settings: dict[str, Any]) -> None:
    """Train as one of Ray Train's workers. What no retry mends is told, not raised."""
    job: Job = settings["job"]
    supervisor = settings["supervisor"]
    torch.set_num_threads(job.cluster.cpus_per_worker)
    if not ray.get(supervisor.wants.remote()):
        return
    try:
        with joined(job) as world, Line(supervisor, world, job) as line:
            _train(job, settings, world, line)
    except Exception as error:
        if decide(error) is Decision.RETRY:
            raise
        ray.get(supervisor.put.remote(explain(error, job.train)))
        alone = ray.train.get_context().get_world_size() == 1
        if not alone and not isinstance(error, DivergedError):
            raise  # the others wait for this worker: Ray has to end them


@contextlib.contextmanager
def joined(job: Job) -> Iterator[World]:
    """This worker among the others, connected to them."""
    context = ray.train.get_context()
    device = _device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if job.train.deterministic:  # read when cuBLAS is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rank, size = context.get_world_rank(), context.get_world_size()
    if size == 1:
        yield World(rank, size, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if rank:
        _wait_for_first_worker()
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=PATIENT)
    # Within a step nobody waits long for anybody, unless somebody hangs.
    grace = COMPILING if compiles(job) else GRACE
    hang = timedelta(seconds=job.cluster.hang_seconds + grace)
    yield World(rank, size, device, dist.new_group(timeout=hang))
    dist.destroy_process_group()


def _wait_for_first_worker() -> None:
    """Until it listens: who comes earlier than that, torch lets wait more than half a second.

    Where it does not, within `MEETING_SECONDS`, torch tries on and says why.
    """
    there = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(there, timeout=1):
            return
        time.sleep(0.01)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    from ray.train.torch import get_device  # half a second, for nothing where there is none

    device: torch.device = get_device()
    return device


def _train(job: Job, settings: dict[str, Any], world: World, line: "Line") -> None:
    prepared = PreparedData.load(Folder(settings["prepared"]))
    if prepared is None:
        raise StageError(
            f"{settings['prepared']}: the prepared data is gone, or on no shared storage"
        )
    task = job.build_task()
    checkpoints = Checkpoints(
        Folder(settings["folder"]) / "checkpoints",
        task.metric,
        settings["made_by"],
        settings["attempt"],
        line.event,
    )
    if world.rank == 0:
        newest = checkpoints.all()[-1:]
        step = newest[0].step if newest else 0
        line.event("resumed" if step else "began", step=step, workers=world.size)
        if job.train.profile_steps:
            to = Folder(settings["folder"]) / "profile"
            line.profiler = StepProfiler(job.train.profile_steps, to, line.event)
    config = job.train.model_copy(update={"compile": compiles(job)})
    metrics = fit(task, prepared, config, world, line, checkpoints)
    if line.profiler is not None:
        line.profiler.close()
    if metrics is None:
        # Stopped early. Nobody leaves before the last checkpoint is saved.
        asked = world.exchange(line.asked, patient=True)
        if Directive.STOP not in (directive for (directive,) in asked):
            raise PreemptedError("a machine is taken away")


class Line:
    """A worker's line to the supervisor: a thread that speaks once a second, and `fit`'s reporter.

    The thread speaks for the process, the steps for the training: a process that is stopped falls
    silent, one that waits for another does not.
    """

    def __init__(self, supervisor: Any, world: World, job: Job) -> None:
        self.supervisor = supervisor
        self.world = world
        self.wants_spare = job.cluster.spares
        self.counts = find_task(job.task).counts
        self.group = 0
        self.step, self.seconds = 0, 0.0
        self.profiler: StepProfiler | None = None
        # A time budget becomes a number of steps by timing some. No recorded step is one of these.
        self.knows_total_steps = job.train.steps is not None
        self.asked = Directive.GO_ON
        self.draining: list[str] = []  # nodes of this group that will be taken away
        self._ended = threading.Event()

    def __enter__(self) -> "Line":
        if self.world.rank == 0:
            self.group = ray.get(self.supervisor.begin.remote(self.world.size))
        self.group = self.world.exchange(self.group, patient=True)[0][0]
        threading.Thread(target=self._speak, name="line", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.supervisor.done.remote(self.group, self.world.rank)

    def stepped(self, step: int, seconds: float) -> None:
        self.step, self.seconds = step, self.seconds + seconds
        if self.profiler is not None and self.knows_total_steps:
            self.profiler.step_done(step)

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        self.knows_total_steps = total_steps is not None
        speed = {f"{self.counts}/s": values["throughput"]}
        others = {name: value for name, value in values.items() if name != "throughput"}
        self.supervisor.put.remote(Figures(step, total_steps, others | speed))

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        values = {f"validation {name}": value for name, value in metrics.items()}
        self.supervisor.put.remote(Figures(step, total_steps, values))

    def event(self, kind: str, **fields: object) -> None:
        self.supervisor.put.remote(Event(kind, fields))

    def directive(self) -> Directive:
        """What the command asks for; to stop, too, where a machine is about to be taken away."""
        return Directive.STOP if self.draining else self.asked

    def _speak(self) -> None:
        context = ray.get_runtime_context()
        started = time.monotonic()
        while not self._ended.wait(BEAT_SECONDS):
            beat = Beat(
                self.world.rank,
                os.getpid(),
                context.get_node_id(),
                socket.gethostname(),
                self.step,
                self.seconds,
            )
            try:
                answer = self.supervisor.beat.remote(self.group, beat)
                asked, draining = ray.get(answer, timeout=10)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:
                return  # the command is gone, and Ray ends its workers
            self.asked, self.draining = Directive(asked), draining
            if self.wants_spare and time.monotonic() - started > SPARE_SECONDS:
                self.wants_spare = False
                spares.start_beside_this_worker()
