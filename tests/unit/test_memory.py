"""The memory of workers: what they ask of the system, in processes of their own."""

import os
import subprocess
import sys

import pytest

from orchestrator.train.preload import ENVIRONMENT

PAGES = """
import resource, threading
import torch

def steps():
    for _ in range(10):
        blocks = [torch.ones(25_000_000) for _ in range(2)]  # of 100 MB
        del blocks

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=steps)  # as Ray's workers train
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_asked_for(environment: dict[str, str]) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", PAGES],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")
def test_a_step_takes_up_the_memory_of_the_last() -> None:
    assert pages_asked_for(ENVIRONMENT) < pages_asked_for({}) / 5
