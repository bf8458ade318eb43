"""Which parameter is updated by what, and how the learning rate runs."""

from collections import Counter

import pytest
import torch

from orchestrator.job import TrainConfig
from orchestrator.model.transformer import Transformer
from orchestrator.optimizer import build_optimizers, learning_rate


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, make_model) -> Transformer:
    return make_model(norm="layernorm", positions="learned", tie_embeddings=request.param)


def step_with(model: Transformer, config: TrainConfig, gradient: float) -> set[str]:
    """One step with gradients of that size; the names of the parameters that it moved."""
    random = torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = gradient * torch.randn(parameter.shape, generator=random)
    for optimizer in build_optimizers(model, config):
        optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def block_matrices(model: Transformer) -> set[str]:
    return {name for name, p in model.blocks.named_parameters(prefix="blocks") if p.ndim == 2}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_belongs_to_exactly_one_optimizer(
    model: Transformer, optimizer: str
) -> None:
    owners = Counter(
        id(parameter)
        for owner in build_optimizers(model, TrainConfig(optimizer=optimizer))
        for group in owner.param_groups
        for parameter in group["params"]
    )
    assert owners == Counter(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_moves_every_parameter(model: Transformer, optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, weight_decay=0.0)
    assert step_with(model, config, gradient=1.0) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_the_matrices_of_the_blocks_decay(model: Transformer, optimizer: str) -> None:
    """Without a gradient, what still moves is what decays."""
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1)
    assert step_with(model, config, gradient=0.0) == block_matrices(model)


def test_muon_and_adamw_move_a_matrix_by_about_the_same(make_model) -> None:
    sizes = []
    for optimizer in ("adamw", "muon"):
        model = make_model(d_model=256)
        weight = model.blocks[0].attention.query.weight.detach()
        before = weight.clone()
        step_with(model, TrainConfig(optimizer=optimizer, weight_decay=0.0, lr=0.01), 1.0)
        sizes.append(float((weight - before).norm()))
    assert 0.1 < sizes[1] / sizes[0] < 0.5  # AdamW's first step is its largest


def rates(config: TrainConfig, total_steps: int | None, steps: int) -> list[float]:
    return [learning_rate(config, step, total_steps) for step in range(steps)]


def test_the_rate_climbs_linearly_to_its_peak() -> None:
    found = rates(TrainConfig(lr=0.5, warmup_steps=5), 100, 6)
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_the_first_rate_is_the_peak_without_a_warm_up() -> None:
    assert learning_rate(TrainConfig(lr=0.5, warmup_steps=0), 0, 100) == pytest.approx(0.5)


@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1, 1.0])
def test_the_rate_ends_at_its_smallest(min_lr_ratio: float) -> None:
    config = TrainConfig(lr=0.5, warmup_steps=10, min_lr_ratio=min_lr_ratio)
    assert learning_rate(config, 200, 200) == pytest.approx(0.5 * min_lr_ratio)
    assert learning_rate(config, 300, 200) == pytest.approx(0.5 * min_lr_ratio)
    halfway = learning_rate(config, 105, 200)
    assert halfway == pytest.approx(0.5 * (1 + min_lr_ratio) / 2)


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(0, 50), (10, 50), (49, 50)])
def test_the_rate_only_climbs_before_the_peak_and_only_falls_after_it(
    warmup_steps: int, total_steps: int
) -> None:
    config = TrainConfig(lr=0.5, warmup_steps=warmup_steps, min_lr_ratio=0.1)
    found = rates(config, total_steps, total_steps)
    climb, fall = found[: warmup_steps + 1], found[warmup_steps:]
    assert climb == sorted(climb)
    assert fall == sorted(fall, reverse=True)
    assert max(found) == pytest.approx(0.5)
    assert min(found) > 0


def test_the_rate_stays_at_its_peak_while_the_end_is_unknown() -> None:
    found = rates(TrainConfig(lr=0.5, warmup_steps=2), None, 8)
    assert found == pytest.approx([0.25, *[0.5] * 7])


@pytest.mark.parametrize("total_steps", [1, 10, 40])
def test_a_training_shorter_than_its_warm_up_still_has_a_rate(total_steps: int) -> None:
    found = rates(TrainConfig(lr=0.5, warmup_steps=40), total_steps, total_steps)
    assert all(0 < rate <= 0.5 for rate in found)
    assert found == sorted(found)
