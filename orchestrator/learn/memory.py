"""How much memory a training takes."""

import contextlib
import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far, in bytes.

    On a GPU: of the tensors there. On a CPU: of the whole process, its libraries included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):  # `ru_maxrss` counts the process that started this one
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
