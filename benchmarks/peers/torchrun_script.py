"""The same training as a plain script: DistributedDataParallel, the engine's precision, and rows
from a mapped file.

    python -m torch.distributed.run --standalone --nproc_per_node=2 \
        -m benchmarks.peers.torchrun_script FOLDER
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.workload import StepTimer, Workload, as_tokens, mean_loss


def main() -> None:
    workload = Workload.load(sys.argv[1])
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    timer = StepTimer()
    model = workload.build_model()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True) if size > 1 else model
    optimizer = workload.build_optimizer(model)
    batch_per_worker = workload.batch // size
    for step in range(workload.steps):
        start = step * workload.batch + rank * batch_per_worker
        tokens_BT = as_tokens(workload.rows[start : start + batch_per_worker])
        with torch.autocast("cpu", torch.bfloat16, enabled=workload.bf16):
            loss = mean_loss(parallel, tokens_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), workload.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        timer.ended(loss)
    if rank == 0:
        timer.print()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
