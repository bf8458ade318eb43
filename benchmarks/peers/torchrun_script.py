"""The best plain script: DistributedDataParallel, the engine's precision, rows from a mapped file.

python -m torch.distributed.run --standalone --nproc_per_node=2 -m \
benchmarks.peers.torchrun_script FOLDER
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers.work import Steps, Work, as_tokens, mean_loss


def main() -> None:
    work = Work.load(sys.argv[1])
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    steps = Steps()
    model = work.build_model()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True) if size > 1 else model
    optimizer = work.build_optimizer(model)
    mine = work.batch // size
    for step in range(work.steps):
        start = step * work.batch + rank * mine
        tokens_BT = as_tokens(work.rows[start : start + mine])
        with torch.autocast("cpu", torch.bfloat16, enabled=work.bf16):
            loss = mean_loss(parallel, tokens_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), work.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.ended(loss)
    if rank == 0:
        steps.print()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
