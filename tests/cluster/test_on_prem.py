"""`ray up cluster/on_prem.yaml` on three hosts: jobs, hosts that die, partitions, `ray down`.

The tests run in this order, on one cluster: an endpoint takes the CPUs of a host, so the trainings
that lose a host come before it.
"""

import contextlib
import os
import random
import shlex
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.cluster.hosts import Host
from tests.cluster.laptop import ACTIVATE, Job, Laptop, wait_for, weights

pytestmark = [pytest.mark.timeout(600, func_only=True)]

NAME = "stdlib-lm-debug"
RUN = ("run", "jobs/language_modelling_debug.yaml", "storage=/mnt/shared/runs")
# A worker takes all CPUs of a host, so the two workers of a job are on different hosts.
WORKERS = ("cluster.workers=2", f"cluster.cpus_per_worker={os.cpu_count()}")
# Micro-batches of one row make slow steps. The precision is fixed: the faster one may differ
# between runs, and with it the bits.
SLOW = (
    *("--until", "train", "tune=null", "data.source=/mnt/shared/texts", "tokenizer.vocab_size=300"),
    *("train.steps=160", "train.micro_batch_size=1", "train.precision=fp32"),
    *("train.checkpoint_every=20", "train.eval_every=100"),
)


def submit_slow(laptop: Laptop, name: str) -> Job:
    return laptop.submit(*RUN, f"name={name}", *WORKERS, *SLOW)


def wait_for_step(laptop: Laptop, job: Job, name: str, step: int) -> None:
    """Wait until a run has a checkpoint of this step or a later one."""

    def reached() -> bool:
        assert job.status() in ("PENDING", "RUNNING"), job.log()[-2000:]
        return saved(laptop, name) >= step

    wait_for(f"step {step} of {name}", 120, reached)


def saved(laptop: Laptop, name: str) -> int:
    """The step of the newest checkpoint of a run."""
    return max((event["step"] for event in laptop.events(name, "checkpoint")), default=0)


def finish(job: Job, seconds: float = 150) -> None:
    assert job.wait(seconds) == "SUCCEEDED", job.log()[-3000:]


@pytest.fixture(scope="module")
def undisturbed(laptop: Laptop) -> dict[str, str]:
    """The files of the last checkpoint of a training that nothing disturbs."""
    with laptop.tunnel():
        finish(submit_slow(laptop, "undisturbed"))
    return weights(laptop.runs("undisturbed"))


def test_a_worker_host_dies_in_training(
    laptop: Laptop, undisturbed: dict[str, str], chance: random.Random
) -> None:
    with laptop.tunnel():
        job = submit_slow(laptop, "host-dies")
        wait_for_step(laptop, job, "host-dies", chance.randrange(20, 80))
        victim = laptop.worker_hosts("ALIVE")[-1]
        assert victim is not laptop.head
        victim.kill()
        started = time.monotonic()
        wait_for("resumed", 90, lambda: laptop.events("host-dies", "resumed"))
        print(f"\na host dies: {time.monotonic() - started:.1f} s until the training goes on")
        finish(job)
    assert weights(laptop.runs("host-dies")) == undisturbed
    assert laptop.events("host-dies", "node lost")
    victim.start()
    laptop.wait_for_nodes(len(laptop.network.hosts))  # Ray's autoscaler starts it again over ssh


@pytest.mark.parametrize("cut_off", ["worker", "head"])
def test_a_partition_of_ten_seconds(
    laptop: Laptop, undisturbed: dict[str, str], chance: random.Random, cut_off: str
) -> None:
    name = f"partition-{cut_off}"
    with laptop.tunnel():
        job = submit_slow(laptop, name)
        wait_for_step(laptop, job, name, chance.randrange(20, 80))
        victim = laptop.head if cut_off == "head" else laptop.worker_hosts("ALIVE")[-1]
    with cut(victim):
        time.sleep(10)
    with laptop.tunnel():
        again = submit_slow(laptop, name)
        assert again.wait(60) == "FAILED"
        assert "is in use by" in again.log()
        finish(job)
    assert weights(laptop.runs(name)) == undisturbed
    assert not laptop.events(name, "worker lost")


@contextlib.contextmanager
def cut(host: Host) -> Iterator[None]:
    host.cut()
    try:
        yield
    finally:
        host.join()


def test_a_submitted_job_trains_on_several_hosts_and_serves(laptop: Laptop) -> None:
    with laptop.tunnel():
        job = laptop.submit(*RUN, *WORKERS)
        finish(job, 300)
        assert len(laptop.worker_hosts("DEAD")) >= 2
        assert "the endpoint stays deployed" in job.log()
    with laptop.endpoint() as url:
        assert wait_for("an answer", 20, lambda: completes(url))


def completes(url: str) -> bool:
    body = {"prompt": "import", "max_tokens": 4}
    with contextlib.suppress(httpx.TransportError):
        return httpx.post(f"{url}/v1/completions", json=body, timeout=10).status_code == 200
    return False


def test_a_finished_job_submitted_again_only_deploys(laptop: Laptop) -> None:
    with laptop.tunnel():
        job = laptop.submit(*RUN, *WORKERS)
        finish(job)
        assert job.log().count("already finished") == 4


def test_a_call_without_the_token_is_refused(laptop: Laptop) -> None:
    with laptop.tunnel():
        assert laptop.get("/api/jobs/", token=False).status_code == 401
        assert laptop.get("/api/jobs/").status_code == 200
    stranger = laptop.network.hosts[1].run(
        f"{ACTIVATE} mv ~/.ray/auth_token ~/kept; RAY_AUTH_MODE=disabled"
        f" timeout 60 ray status --address {laptop.head.address}:6379; code=$?;"
        " mv ~/kept ~/.ray/auth_token; exit $code",
        check=False,
    )
    assert stranger.returncode != 0 and "local.cluster.node" not in stranger.stdout


# Kills a process, and starts its command again after some seconds.
RESTART = """
import os, signal, subprocess, sys, time
process, seconds = map(int, sys.argv[1:])
of = f"/proc/{process}"
command = open(f"{of}/cmdline").read().split("\\0")[:-1]
variables = open(f"{of}/environ").read().split("\\0")[:-1]
environment = dict(variable.split("=", 1) for variable in variables)
os.kill(process, signal.SIGKILL)
time.sleep(seconds)
log = open("/tmp/restarted.log", "w")
subprocess.Popen(command, env=environment, stdin=log, stdout=log, stderr=log, process_group=0)
"""


def test_the_control_service_dies_for_twelve_seconds(laptop: Laptop) -> None:
    """Ray's GCS is killed, and started again as its supervisor would: no request fails."""
    with laptop.endpoint() as url, load(url) as answers:
        laptop.head.run(f"python3 -c {shlex.quote(RESTART)} $(pgrep gcs_server) 12")
        time.sleep(5)
    print(f"\nthe GCS is gone for 12 s: {len(answers)} requests")
    assert len(answers) > 20
    assert set(answers) == {200}
    laptop.wait_for_nodes(len(laptop.network.hosts))


@contextlib.contextmanager
def load(url: str) -> Iterator[list[int]]:
    """Ask the endpoint without a pause; the status codes of its answers."""
    answers: list[int] = []
    done = threading.Event()

    def ask() -> None:
        body = {"prompt": "import", "max_tokens": 4}
        with httpx.Client(timeout=30) as client:
            while not done.is_set():
                try:
                    answers.append(client.post(f"{url}/v1/completions", json=body).status_code)
                except httpx.HTTPError:
                    answers.append(0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()


def test_the_head_dies_and_comes_back(
    laptop: Laptop, undisturbed: dict[str, str], chance: random.Random
) -> None:
    with laptop.tunnel():
        job = submit_slow(laptop, "head-dies")
        wait_for_step(laptop, job, "head-dies", chance.randrange(20, 80))
    laptop.head.kill()
    time.sleep(2)
    step = saved(laptop, "head-dies")
    laptop.head.start()
    laptop.restart_head()
    started = time.monotonic()
    with laptop.endpoint() as url:
        wait_for("the endpoint", 60, lambda: completes(url))
        seconds = time.monotonic() - started
        print(f"\nthe head dies: {seconds:.1f} s from its restart until the endpoint answers")
    assert seconds < 30
    with laptop.tunnel():
        finish(submit_slow(laptop, "head-dies"))
    assert weights(laptop.runs("head-dies")) == undisturbed
    resumed = laptop.events("head-dies", "resumed")
    assert resumed and resumed[-1]["step"] >= step - 20


def test_ray_down_leaves_nothing(laptop: Laptop) -> None:
    laptop.down()
    for host in laptop.network.hosts:
        left = [line for line in host.processes() if "ray" in line and "cat /proc" not in line]
        assert not left, (host.name, left)
