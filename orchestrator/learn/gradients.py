"""Gradients in one flat buffer, summed over the workers in an order that never changes.

PyTorch's DistributedDataParallel changes its buckets after the first step. With three workers or
more, a resumed run then adds the same numbers in another order and ends in other bits. Here the
layout is fixed, and communication still overlaps with the backward pass.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.learn.world import World

BUCKET_BYTES = 25 * 2**20  # as DistributedDataParallel's


class Gradients:
    """The gradients of a model's parameters; each `parameter.grad` is a view of the buffer.

    With `deterministic` the gradients of the micro-batches are kept apart, and added one by one in
    the order of the global batch: the same bits for any number of workers. That takes a buffer for
    each of this worker's micro-batches, and sends each buffer over the network.
    """

    def __init__(self, model: nn.Module, world: World, deterministic: bool = False) -> None:
        self.world = world
        self.deterministic = deterministic
        # Roughly the order in which the backward pass finishes them.
        parameters = [p for p in model.parameters() if p.requires_grad][::-1]
        size = sum(p.numel() for p in parameters)
        self._buffer = torch.zeros(size + 2, device=world.device)  # loss and count come last
        self.flat, self._totals = self._buffer[:size], self._buffer[size:]
        self._parts: list[Tensor] = []
        self._work: list[dist.Work] = []
        self._buckets: list[Tensor] = []
        self._missing: list[int] = []  # gradients not computed yet, in each bucket
        self._members: list[int] = []
        self._sending = False
        self._parts_by_rank: list[int] = []  # the same in every step
        start = stop = 0
        for parameter in parameters:
            begin, stop = stop, stop + parameter.numel()
            parameter.grad = self.flat[begin:stop].view_as(parameter)
            if not self._members or (stop - start) * 4 > BUCKET_BYTES:
                start = begin
                self._buckets.append(self._buffer[start:])
                self._members.append(0)
            self._buckets[-1] = self._buffer[start:stop]
            self._members[-1] += 1
            if world.size > 1 and not deterministic:
                parameter.register_post_accumulate_grad_hook(self._hook(len(self._members) - 1))
        self._buckets[-1] = self._buffer[start:]

    def add(self, loss: Tensor, count: Tensor, last: bool) -> None:
        """Run the backward pass of a micro-batch: a loss that sums `count` terms.

        With `last`, a bucket is sent as soon as its gradients are computed.
        """
        self._totals += torch.stack((loss.detach(), count))
        self._sending = last and self.world.size > 1 and not self.deterministic
        self._missing = list(self._members)
        loss.backward()
        self._sending = False
        if self.deterministic:
            self._parts.append(self._buffer.clone())
            self._buffer.zero_()

    def sum(self) -> tuple[Tensor, Tensor]:
        """Sum over all workers. Returns the loss and the count of its terms, float32 scalars."""
        if self.deterministic:
            self._buffer.copy_(self._sum_in_order())
        elif self.world.size > 1:
            while len(self._work) < len(self._buckets):  # those whose parameters got no gradient
                self._send()
            for work in self._work:
                work.wait()
            self._work.clear()
        return self._totals[0].clone(), self._totals[1].clone()

    def clip(self, count: Tensor, limit: float) -> Tensor:
        """Divide by `count`, and scale the norm down to `limit`. Returns the norm before.

        All workers use the first one's norm. A machine of another kind, or with another number of
        threads, adds the same squares in another order: its norm differs in the last bit, and so
        would its weights.
        """
        norm = torch.linalg.vector_norm(self.flat) / count
        if self.world.size > 1:
            dist.broadcast(norm, 0, group=self.world.group)
        self.flat *= torch.clamp(limit / (norm + 1e-6), max=1.0) / count
        return norm

    def zero(self) -> None:
        self._buffer.zero_()

    def _hook(self, bucket: int) -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            if self._sending:
                self._missing[bucket] -= 1
                # All workers send in one order, or they would wait for one another.
                while (
                    len(self._work) < len(self._buckets) - 1 and not self._missing[len(self._work)]
                ):
                    self._send()

        return arrived

    def _send(self) -> None:
        work = dist.all_reduce(
            self._buckets[len(self._work)], group=self.world.group, async_op=True
        )
        assert work is not None
        self._work.append(work)

    def _sum_in_order(self) -> Tensor:
        """The sum of all workers' parts, added from the first to the last.

        Each worker adds up its share of the elements over all parts, and sends it to the others.
        """
        parts, self._parts = self._parts, []
        size = self.world.size
        if size == 1:
            return _add_up(parts)
        share = -(-self._buffer.numel() // size)
        padded = self._buffer.new_zeros(len(parts), size * share)
        for row, part in zip(padded, parts, strict=True):
            row[: part.numel()] = part
        if not self._parts_by_rank:  # asked for once: a GPU would wait for it in every step
            self._parts_by_rank = [count for (count,) in self.world.exchange(len(parts))]
        counts = self._parts_by_rank
        assert counts[self.world.rank] == len(parts)
        received = self._buffer.new_empty(sum(counts), share)
        dist.all_to_all_single(
            received.view(-1),
            padded.view(len(parts), size, share).transpose(0, 1).reshape(-1),
            output_split_sizes=[count * share for count in counts],
            input_split_sizes=[len(parts) * share] * size,
            group=self.world.group,
        )
        summed = _add_up(list(received))
        whole = self._buffer.new_empty(size, share)
        dist.all_gather(list(whole), summed, self.world.group)
        return whole.view(-1)[: self._buffer.numel()]


def _add_up(parts: list[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
