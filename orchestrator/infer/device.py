"""The device that a process computes on."""

import socket

import torch

from orchestrator.errors import UserError


def device_for(key: str, gpus: float) -> torch.device:
    """The device of a process that asked Ray for so many GPUs; Ray shows it only these.

    Without GPUs it is the CPU, also where the machine has some: Ray does not hide them.

    Raises:
        UserError: if torch finds no GPU here.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"{key} = {gpus:g}: torch {torch.__version__} on {socket.gethostname()} finds no GPU: "
            f"install a driver and torch for CUDA there, or set {key} to 0"
        )
    return torch.device("cuda")
