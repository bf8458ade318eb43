"""Which parameter is updated by what, and how the learning rate runs."""

import functools
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from orchestrator.job.sections import TrainConfig
from orchestrator.learn.optimizer import (
    AdamW,
    Muon,
    build_optimizers,
    learning_rate,
    orthogonalised,
)
from orchestrator.learn.world import World
from orchestrator.model.transformer import Transformer

Parameters = list[torch.nn.Parameter]

TAKEN, SKIPPED = torch.tensor(True), torch.tensor(False)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, make_model) -> Transformer:
    return make_model(norm="layernorm", positions="learned", tie_embeddings=request.param)


def step_with(model: Transformer, config: TrainConfig, gradient: float) -> set[str]:
    """One step with gradients of that size; the names of the parameters that it moved."""
    random = torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = gradient * torch.randn(parameter.shape, generator=random)
    for optimizer in build_optimizers(model, config, World()):
        optimizer.step(config.lr, TAKEN)
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def block_matrices(model: Transformer) -> set[str]:
    return {name for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_belongs_to_exactly_one_optimizer(
    model: Transformer, optimizer: str
) -> None:
    owners = Counter(
        id(parameter)
        for owner in build_optimizers(model, TrainConfig(optimizer=optimizer), World())
        for parameter in owner.parameters
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
        weight = model.decoder.blocks[0].attention.query.weight.detach()
        before = weight.clone()
        step_with(model, TrainConfig(optimizer=optimizer, weight_decay=0.0, lr=0.01), 1.0)
        sizes.append(float((weight - before).norm()))
    assert 0.1 < sizes[1] / sizes[0] < 0.5  # AdamW's first step is its largest


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_changes_nothing_at_all(make_model, optimizer: str) -> None:
    model, random = make_model(), torch.Generator().manual_seed(0)
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer), World())

    def step(taken: torch.Tensor, factor: float = 1.0) -> list[torch.Tensor]:
        for parameter in model.parameters():
            parameter.grad = factor * torch.randn(parameter.shape, generator=random)
        for one in optimizers:
            one.step(0.1, taken)
        states = [value for one in optimizers for of in one.state.values() for value in of.values()]
        return [tensor.detach().clone() for tensor in (*model.parameters(), *states)]

    step(TAKEN)
    before = step(TAKEN)
    for factor in (1.0, torch.nan, torch.inf):
        assert all(map(torch.equal, step(SKIPPED, factor), before))
    assert not any(map(torch.equal, step(TAKEN), before))


@pytest.mark.parametrize("frozen", ["decoder.blocks.", "tokens.", "decoder.blocks.0."])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parameters_stay_as_they_are(make_model, optimizer: str, frozen: str) -> None:
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    config = TrainConfig(optimizer=optimizer)
    for optimizer in build_optimizers(model, config, World()):
        optimizer.step(config.lr, TAKEN)
    kept = [torch.equal(old, p) for old, p in zip(before, model.parameters(), strict=True)]
    assert kept == [name.startswith(frozen) for name in names]


@pytest.mark.parametrize("shape", [(32, 32), (24, 64), (64, 24)])
def test_an_orthogonalised_matrix_has_singular_values_of_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix).float()
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.3 and float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0)
    assert cosine > 0.95


def fitted(
    shapes: list[tuple[int, int]], steps: int, step_of: Callable[[Parameters], Callable[[], object]]
) -> torch.Tensor:
    """The way of matrices that an optimizer fits to a target each, (steps, elements)."""
    random = torch.Generator().manual_seed(0)
    targets = [torch.randn(shape, generator=random) for shape in shapes]
    matrices = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    step, way = step_of(matrices), []
    for _ in range(steps):
        for matrix, target in zip(matrices, targets, strict=True):
            matrix.grad = matrix.detach() - target
        step()
        way.append(torch.cat([matrix.detach().flatten() for matrix in matrices]))
    return torch.stack(way)


def test_muon_goes_the_way_of_torchs() -> None:
    """Matrices of several shapes, the costliest not the first."""
    shapes = [(8, 8), (8, 32), (32, 8), (16, 16)]
    torchs = fitted(
        shapes,
        30,
        lambda p: torch.optim.Muon(p, 0.1, 0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw").step,
    )
    mine = fitted(shapes, 30, lambda p: functools.partial(Muon(p, 0.1, World()).step, 0.1, TAKEN))
    assert float((mine - torchs).norm() / torchs.norm()) < 0.02


def test_adamw_takes_the_steps_of_torchs_to_the_bit() -> None:
    def torchs(parameters: Parameters) -> Callable[[], object]:
        groups = [
            {"params": parameters[:1], "weight_decay": 0.1},
            {"params": parameters[1:], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.98), fused=True).step

    def mine(parameters: Parameters) -> Callable[[], object]:
        groups = [(parameters[:1], 0.1), (parameters[1:], 0.0)]
        return functools.partial(AdamW(groups, (0.9, 0.98)).step, 0.1, TAKEN)

    shapes = [(8, 8), (4, 16), (3, 5)]
    assert torch.equal(fitted(shapes, 20, mine), fitted(shapes, 20, torchs))


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
