"""One worker: runs `fit()` in a process of Ray Train, and reports to the supervisor."""

import contextlib
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psutil
import ray
import ray.train
import torch
import torch.distributed as dist

from orchestrator.errors import DivergedError, StageError, UserError, first_line
from orchestrator.infer.device import device_for
from orchestrator.job.cost import compiles
from orchestrator.job.init_from import Weights
from orchestrator.job.inputs import model_files
from orchestrator.job.job import Job
from orchestrator.job.task_registry import find_task
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.directive import Directive
from orchestrator.learn.fit import fit
from orchestrator.learn.memory import peak_memory
from orchestrator.learn.profiler import StepProfiler
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.train import spares
from orchestrator.train.calls import ANSWER_SECONDS, Outbox, answer
from orchestrator.train.failures import Decision, PreemptedError, decide, explain
from orchestrator.train.supervisor import Event, Figures, Heartbeat

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
SPARE_SECONDS = 4.0  # of training before a spare starts, so that it does not slow down the start
MEETING_SECONDS = 10.0
PATIENT = timedelta(hours=1)  # for exchanges that wait for storage
# Seconds after `cluster.hang_seconds` until other workers give up on one that hangs. The supervisor
# comes first, kills that worker and names it.
GRACE_SECONDS = 10.0
NCCL_SECONDS = 60  # more until NCCL's own threads count as hanging: their time-out comes first
COMPILE_SECONDS = 300.0  # the same where models compile: some workers take longer than others


def train(settings: dict[str, Any]) -> None:
    """Train as one of Ray Train's workers.

    An error that a retry cannot mend goes to the supervisor. It is also raised where other workers
    wait for this one.
    """
    job: Job = settings["job"]
    supervisor = settings["supervisor"]
    torch.set_num_threads(job.cluster.cpus_per_worker)
    if not answer(supervisor.may_train):
        return
    try:
        with joined(job) as world, SupervisorLink(supervisor, world, job) as link:
            _fit(job, settings, world, link)
    except Exception as error:
        if decide(error) is Decision.RETRY:
            raise
        answer(supervisor.put, explain(error, job.train))
        alone = ray.train.get_context().get_world_size() == 1
        if not alone and not isinstance(error, DivergedError):
            raise  # other workers wait for this one: Ray has to end them


@contextlib.contextmanager
def joined(job: Job) -> Iterator[World]:
    """Connect this worker with the others."""
    context = ray.train.get_context()
    device = _device(job)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        _watch_nccl(job)
        if job.train.deterministic:  # cuBLAS reads this when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rank, size = context.get_world_rank(), context.get_world_size()
    if size == 1:
        yield World(rank, size, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if interface := network_interface(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if rank:
        _wait_for_first_worker()
    dist.init_process_group(
        backend,
        rank=rank,
        world_size=size,
        timeout=PATIENT,
        device_id=device if device.type == "cuda" else None,  # else NCCL guesses it by the rank
    )
    yield World(rank, size, device, dist.new_group(timeout=_hang(job)))
    dist.destroy_process_group()


def _hang(job: Job) -> timedelta:
    """Within a step workers wait so long for one another only if one of them hangs."""
    grace = COMPILE_SECONDS if compiles(job) else GRACE_SECONDS
    return timedelta(seconds=job.cluster.hang_seconds + grace)


def _watch_nccl(job: Job) -> None:
    """Have NCCL end this process where an exchange takes too long: Ray then starts the group again.

    A GPU that waits for another one looks busy, and this process still sends heartbeats. NCCL reads
    these variables when the group is made. A user's own values stay.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")  # end it, touch the GPU no more
    # For threads of NCCL that hang themselves, in a call of the driver.
    os.environ.setdefault(
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(int(_hang(job).total_seconds()) + NCCL_SECONDS)
    )


def network_interface(address: str) -> str:
    """The name of the network interface that has this node's address; empty if none has.

    Gloo by itself takes the interface of the machine's name, which on many machines is the
    loopback interface (`127.0.1.1 name` in /etc/hosts): other machines cannot reach that one.
    """
    if ipaddress.ip_address(address).is_loopback:  # all workers are on this machine
        return ""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    return ""


def _wait_for_first_worker() -> None:
    """Wait until the first worker listens: connecting earlier costs torch more than half a second.

    After `MEETING_SECONDS` this returns anyway; then torch keeps trying and reports why it fails.
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return
        time.sleep(0.01)


def _device(job: Job) -> torch.device:
    device = device_for("cluster.gpus_per_worker", job.cluster.gpus_per_worker)
    if device.type == "cpu":
        return device
    from ray.train.torch import get_device  # takes half a second, so not without a GPU

    mine: torch.device = get_device()  # workers of one machine see each other's GPUs
    return mine


def _fit(job: Job, settings: dict[str, Any], world: World, link: "SupervisorLink") -> None:
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
        link.event,
    )
    newest = checkpoints.all()[-1:] if world.rank == 0 or job.weights is not None else []
    if job.weights is not None and not newest:
        _require_weights(job.weights)
    if world.rank == 0:
        step = newest[0].step if newest else 0
        link.event("resumed" if step else "began", step=step, workers=world.size)
        if job.train.profile_steps:
            profiles = Folder(settings["folder"]) / "profile"
            link.profiler = StepProfiler(job.train.profile_steps, profiles, link.event)
    config = job.train.model_copy(update={"compile": compiles(job)})
    metrics = fit(task, prepared, config, world, link, checkpoints)
    if link.profiler is not None:
        link.profiler.close()
    peaks = [peak for (peak,) in world.exchange(peak_memory(world.device), patient=True)]
    if world.rank == 0:
        peak = max(peaks)
        link.event("peak memory", GB=round(peak / 1e9, 2), rank=peaks.index(peak))
    if metrics is None:
        # Stopped early. No worker leaves before the last checkpoint is saved.
        asked = world.exchange(link.asked, patient=True)
        if Directive.STOP not in (directive for (directive,) in asked):
            raise PreemptedError("a machine is taken away")


def _require_weights(weights: Weights) -> None:
    """Check that this node has the weights that the command has seen, before they are read.

    Raises:
        UserError: naming the node and the first file that is missing or has another size.
    """
    try:
        sizes = {name: stamp.size for name, stamp in model_files(weights.place).items()}
    except OSError as error:
        raise UserError(f"model.init_from: {weights.place}: {first_line(error)}") from None
    for name, stamp in weights.files.items():
        if sizes.get(name) == stamp.size:
            continue
        node = f"node {ray.util.get_node_ip_address()} ({socket.gethostname()})"
        what = f"is missing on {node}" if name not in sizes else f"has another size on {node}"
        raise UserError(
            f"model.init_from: {weights.place}/{name} {what}, where a worker runs: put the weights "
            f"on storage that all machines share, or copy them to this path on each"
        )


class SupervisorLink:
    """A worker's connection to the supervisor: a heartbeat thread, and `fit`'s reporter.

    A worker whose process is stopped sends no heartbeats. One that only waits for another worker
    still does, with the same step in each.
    """

    def __init__(self, supervisor: Any, world: World, job: Job) -> None:
        self.supervisor = supervisor
        self.world = world
        self.wants_spare = job.cluster.spares
        self.counts = find_task(job.task).counts
        self.wants_samples = True
        self.generation = 0
        self.step, self.seconds = 0, 0.0
        self.profiler: StepProfiler | None = None
        # A time budget becomes a number of steps by timing some. No recorded step is one of these.
        self.knows_total_steps = job.train.steps is not None
        self.asked = Directive.GO_ON
        self.draining: list[str] = []  # nodes of this group that will be taken away
        self._ended = threading.Event()
        self._outbox = Outbox()

    def __enter__(self) -> "SupervisorLink":
        if self.world.rank == 0:
            self.generation = answer(self.supervisor.begin_group, self.world.size)
        self.generation = self.world.exchange(self.generation, patient=True)[0][0]
        threading.Thread(target=self._send_heartbeats, name="heartbeats", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._outbox.send(self.supervisor.worker_ended, self.generation, self.world.rank)
        self._outbox.flush()

    def stepped(self, step: int, seconds: float) -> None:
        self.step, self.seconds = step, self.seconds + seconds
        if self.profiler is not None and self.knows_total_steps:
            self.profiler.step_done(step)

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        self.knows_total_steps = total_steps is not None
        speed = {f"{self.counts}/s": values["throughput"]}
        others = {name: value for name, value in values.items() if name != "throughput"}
        self._outbox.send(self.supervisor.put, Figures(step, total_steps, others | speed))

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        values = {f"validation {name}": value for name, value in metrics.items()}
        self._outbox.send(self.supervisor.put, Figures(step, total_steps, values))

    def event(self, kind: str, **fields: object) -> None:
        self._outbox.send(self.supervisor.put, Event(kind, fields))

    def directive(self) -> Directive:
        """What the command asks for, or STOP where a machine is about to be taken away."""
        return Directive.STOP if self.draining else self.asked

    def _send_heartbeats(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                beat = self.supervisor.heartbeat.remote(self.generation, self._heartbeat())
                self._outbox.send_again()
                self.asked, self.draining = ray.get(beat, timeout=ANSWER_SECONDS)
            except ray.exceptions.ActorDiedError:
                return  # the command has ended, so Ray ends its workers
            except ray.exceptions.RayError as error:  # the network failed: the next may arrive
                logger.warning("no answer to a heartbeat: %s", first_line(error))
                continue
            if self.wants_spare and time.monotonic() - started > SPARE_SECONDS:
                self.wants_spare = False
                spares.start_beside_this_worker()

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self.world.rank,
            os.getpid(),
            ray.get_runtime_context().get_node_id(),
            socket.gethostname(),
            self.step,
            self.seconds,
            peak_memory(self.world.device),
        )
