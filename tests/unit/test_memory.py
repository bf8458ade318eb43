"""The memory of workers: what they ask of the system, in processes of their own."""

import os
import subprocess
import sys

import pytest
import torch

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


def printed(script: str, environment: dict[str, str]) -> int:
    """The number that a script prints in a process with this environment."""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")
def test_a_step_takes_up_the_memory_of_the_last() -> None:
    assert printed(PAGES, ENVIRONMENT) < printed(PAGES, {}) / 5


SHAPES = """
import torch
from pathlib import Path

weight = torch.randn(256, 256, dtype=torch.bfloat16)

def multiply(rows):
    torch.nn.functional.linear(torch.randn(rows, 256, dtype=torch.bfloat16), weight)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])  # pages

multiply(2000)
before = resident()
for rows in range(1000, 1400):
    multiply(rows)
print(resident() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.cpu._is_avx512_bf16_supported(),
    reason="oneDNN compiles a kernel for each shape where the processor multiplies bf16",
)
def test_rows_of_many_lengths_take_little_memory() -> None:
    assert printed(SHAPES, ENVIRONMENT) < printed(SHAPES, {}) / 2
