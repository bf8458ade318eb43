"""Gradients in one buffer: what one worker sums up, and several of them together."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.learn import gradients as gradients_module
from orchestrator.learn.gradients import Gradients
from orchestrator.learn.optimizer import build_optimizers
from orchestrator.learn.world import World
from tests.unit.toy import together, toy_config

ROWS = 5


class Small(nn.Module):
    """Three layers of which the second takes no part, and the third is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)])
        self.blocks[2].requires_grad_(False)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.blocks[2](self.blocks[0](self.embedding(x_BD)))


def samples() -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    return model(rows).square().sum(), torch.tensor(float(2 * len(rows)))


Sums = tuple[list[Tensor], float, float]


def summed(world: World, bucket_bytes: int, deterministic: bool, rows: int) -> Sums:
    """The gradients of `rows` samples that the workers share, in micro-batches of one."""
    gradients_module.BUCKET_BYTES = bucket_bytes
    model = Small()
    gradients = Gradients(model, world, deterministic)
    for _ in range(2):  # the second time nothing of the first is left
        gradients.zero()
        mine = samples()[:rows][world.share(np.arange(rows))]
        for i in range(len(mine)):
            gradients.add(*loss_of(model, mine[i : i + 1]), last=i + 1 == len(mine))
        loss, count = gradients.sum()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return found, float(loss), float(count)


def summed_in_all_ways(world: World, rows: int) -> list[Sums]:
    """With a bucket for each parameter, with two, with one; in any order, and in that of rows."""
    return [
        summed(world, bucket_bytes, deterministic, rows)
        for deterministic in (False, True)
        for bucket_bytes in (1, 100, 2**20)
    ]


def expected(rows: int = ROWS) -> tuple[list[Tensor], float]:
    """The same by plain autograd."""
    model = Small()
    loss, _ = loss_of(model, samples()[:rows])
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in trained], loss.item()


@pytest.mark.parametrize(("workers", "rows"), [(1, 5), (2, 5), (3, 5), (3, 2)])
def test_the_gradients_are_those_of_all_samples(workers: int, rows: int) -> None:
    wanted, wanted_loss = expected(rows)
    for worker in together(workers, summed_in_all_ways, rows):
        for found, loss, count in worker:
            assert count == 2 * rows
            assert loss == pytest.approx(wanted_loss, rel=1e-5)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_deterministic_sums_have_the_same_bits_for_any_number_of_workers() -> None:
    wanted, *totals = summed(World(), 100, deterministic=True, rows=ROWS)
    for workers in (2, 3):
        for found, *others in together(workers, summed, 100, True, ROWS):
            assert others == totals
            assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_stay_views_through_steps_and_frozen_weights_as_they_are(
    optimizer: str, deterministic: bool
) -> None:
    model = Small()
    gradients = Gradients(model, World(), deterministic)
    optimizers = build_optimizers(model, toy_config(optimizer=optimizer, weight_decay=0), World())
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        gradients.add(*loss_of(model, samples()), last=True)
        _, count = gradients.sum()
        gradients.clip(count, 1.0)
        assert any(p.grad is not None and p.grad.any() for p in model.parameters())
        for one in optimizers:
            one.step(0.1, torch.tensor(True))
        gradients.zero()
        assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    begin, end = gradients.flat.data_ptr(), gradients.flat.data_ptr() + gradients.flat.nbytes
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and begin <= p.grad.data_ptr() < end for p in trained)
    assert gradients.flat.numel() == sum(p.numel() for p in trained)
    names = [name for name, _ in model.named_parameters()]
    moved = [not torch.equal(old, p) for old, p in zip(before, model.parameters(), strict=True)]
    took_part = [name.startswith(("embedding", "blocks.0")) for name in names]
    assert moved == took_part


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_gradients_become_those_of_the_mean_and_no_longer_than_the_limit(limit: float) -> None:
    model = Small()
    gradients = Gradients(model, World())
    gradients.add(*loss_of(model, samples()), last=True)
    _, count = gradients.sum()
    norm = gradients.clip(count, limit)
    wanted, _ = expected()
    means = [gradient / (2 * ROWS) for gradient in wanted]
    length = torch.linalg.vector_norm(torch.cat([mean.flatten() for mean in means]))
    torch.testing.assert_close(norm, length)
    scale = min(1.0, limit / float(length))
    found = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, [mean * scale for mean in means], rtol=1e-4, atol=1e-7)


def test_a_gradient_that_is_no_number_leaves_nothing_behind() -> None:
    model = Small()
    gradients = Gradients(model, World())
    loss, count = loss_of(model, samples())
    gradients.add(loss * torch.nan, count, last=True)
    _, count = gradients.sum()
    assert gradients.clip(count, 1.0).isnan()
    gradients.zero()
    gradients.add(*loss_of(model, samples()), last=True)
    loss, _ = gradients.sum()
    wanted, wanted_loss = expected()
    assert float(loss) == pytest.approx(wanted_loss)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, wanted)


def clipped(world: World, odd: int) -> tuple[list[Tensor], Tensor]:
    """The gradients after clipping, where the worker `odd` adds the squares in another order."""
    if world.rank == odd:
        usual = torch.linalg.vector_norm
        torch.linalg.vector_norm = lambda x: torch.nextafter(usual(x), torch.tensor(torch.inf))
    model = Small()
    gradients = Gradients(model, world)
    mine = samples()[world.share(np.arange(ROWS))]
    gradients.add(*loss_of(model, mine), last=True)
    _, count = gradients.sum()
    norm = gradients.clip(count, 1e-3)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], norm


@pytest.mark.parametrize("odd", [0, 1])
def test_all_workers_clip_by_the_first_one_s_norm(odd: int) -> None:
    (first, norm), (second, other) = together(2, clipped, odd)
    assert torch.equal(norm, other)
    assert all(map(torch.equal, first, second))
    (_, usual), _ = together(2, clipped, 2)
    assert torch.equal(norm, usual) == (odd == 1)
