"""Checkpoints: what is saved is restored to the bit, and what is damaged is passed over."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from orchestrator.artifact import MANIFEST, Checkpoint, Folder
from orchestrator.checkpoint import MODEL_FILE, OPTIMIZER_FILE, Checkpoints
from orchestrator.job import TrainConfig
from orchestrator.model.transformer import Transformer
from orchestrator.optimizer import build_optimizers
from orchestrator.task import Metric

LOSS = Metric("loss", "min")
Optimizers = list[torch.optim.Optimizer]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(Folder(str(tmp_path / "checkpoints")), LOSS)


@pytest.fixture
def build(make_model) -> Callable[..., tuple[Transformer, Optimizers]]:
    def build(seed: int = 0, optimizer: str = "muon") -> tuple[Transformer, Optimizers]:
        model = make_model(seed=seed, norm="layernorm", positions="learned", tie_embeddings=False)
        return model, build_optimizers(model, TrainConfig(optimizer=optimizer, lr=0.01))

    return build


def learn(model: Transformer, optimizers: Optimizers, steps: int) -> None:
    tokens = torch.arange(24).reshape(2, 12) % 11
    for _ in range(steps):
        model(tokens).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def save(checkpoints: Checkpoints, step: int, model: Transformer, optimizers: Optimizers) -> None:
    """The later, the better, unless the test says otherwise."""
    checkpoints.save(step, 100, model, optimizers, {"loss": 1.0 / step}, [{"step": step}])


def weights(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_restored_training_goes_on_to_the_bit(build, checkpoints, optimizer: str) -> None:
    model, optimizers = build(optimizer=optimizer)
    learn(model, optimizers, steps=3)
    save(checkpoints, 3, model, optimizers)
    other, other_optimizers = build(seed=1, optimizer=optimizer)
    restored = checkpoints.restore(other, other_optimizers)
    assert restored is not None and restored.step == 3
    assert same(weights(other), weights(model))
    learn(model, optimizers, steps=2)
    learn(other, other_optimizers, steps=2)
    assert same(weights(other), weights(model))


def test_weights_alone_would_not_go_on_to_the_bit(build, checkpoints) -> None:
    """The test above sees the optimizers' state: without it the two part."""
    model, optimizers = build()
    learn(model, optimizers, steps=3)
    other, other_optimizers = build(seed=1)
    other.load_state_dict(model.state_dict())
    learn(model, optimizers, steps=2)
    learn(other, other_optimizers, steps=2)
    assert not same(weights(other), weights(model))


def test_the_rest_of_a_checkpoint_comes_back_as_it_was(build, checkpoints) -> None:
    history = [{"step": 2.0, "loss": 0.1 + 0.2}, {"step": 4.0, "validation": 1e-17}]
    checkpoints.save(4, 80, *build(), {"loss": 2.5, "accuracy": 1 / 3}, history)
    restored = checkpoints.restore(*build())
    assert restored is not None
    assert (restored.step, restored.total_steps) == (4, 80)
    assert restored.metrics == {"loss": 2.5, "accuracy": 1 / 3}
    assert restored.history == history


def test_nothing_is_restored_from_an_empty_folder(build, checkpoints) -> None:
    model, optimizers = build()
    before = weights(model)
    assert checkpoints.restore(model, optimizers) is None
    assert checkpoints.best() is None
    assert same(weights(model), before)


@pytest.mark.parametrize(
    ("mode", "values", "kept"),
    [
        ("min", [3.0, 1.0, 2.0, 4.0], [2, 4]),
        ("max", [3.0, 1.0, 4.0, 2.0, 0.0], [3, 5]),
        ("min", [4.0, 3.0, 2.0, 1.0], [4]),
        ("min", [1.0, 2.0, 3.0, 4.0], [1, 4]),
        ("min", [1.0, 1.0, 1.0], [3]),
    ],
)
def test_only_the_newest_and_the_best_are_kept(
    build, tmp_path: Path, mode: str, values: list[float], kept: list[int]
) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), Metric("score", mode))
    model, optimizers = build()
    for step, value in enumerate(values, start=1):
        checkpoints.save(step, 100, model, optimizers, {"score": value}, [])
    assert [checkpoint.step for checkpoint in checkpoints.all()] == kept
    best = checkpoints.best()
    assert best is not None and best.step == kept[0]
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_steps_are_in_order_whatever_their_number_of_digits(build, tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(str(tmp_path)), LOSS)
    model, optimizers = build()
    for step in (9, 10, 99_999_999):
        save(checkpoints, step, model, optimizers)
        assert checkpoints.all()[-1].step == step


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def two_checkpoints(build, checkpoints: Checkpoints) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights of the older one and the folder of the newer one."""
    model, optimizers = build()
    learn(model, optimizers, steps=1)
    checkpoints.save(1, 100, model, optimizers, {"loss": 1.0}, [])
    older = weights(model)
    learn(model, optimizers, steps=1)
    checkpoints.save(2, 100, model, optimizers, {"loss": 2.0}, [])
    return older, checkpoints.folder.local_path / "step-00000002"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (MODEL_FILE, truncate),
        (MODEL_FILE, flip_a_bit),
        (MODEL_FILE, Path.unlink),
        (OPTIMIZER_FILE, truncate),
        (OPTIMIZER_FILE, flip_a_bit),
        (OPTIMIZER_FILE, Path.unlink),
        (MANIFEST, truncate),
        (MANIFEST, Path.unlink),
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    build, checkpoints, name: str, damage: Callable[[Path], object]
) -> None:
    older, newest = two_checkpoints(build, checkpoints)
    damage(newest / name)
    model, optimizers = build(seed=1)
    restored = checkpoints.restore(model, optimizers)
    assert restored is not None and restored.step == 1
    assert same(weights(model), older)
    learn(model, optimizers, steps=1)
    save(checkpoints, 3, model, optimizers)  # and training goes on from there
    assert checkpoints.all()[-1].step == 3


@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE])
def test_a_damaged_only_checkpoint_leaves_the_model_as_it_was(
    build, checkpoints, name: str
) -> None:
    save(checkpoints, 1, *build())
    truncate(checkpoints.folder.local_path / "step-00000001" / name)
    model, optimizers = build(seed=1)
    before = weights(model)
    assert checkpoints.restore(model, optimizers) is None
    assert same(weights(model), before)


def test_a_folder_without_a_manifest_is_ignored(build, checkpoints) -> None:
    save(checkpoints, 1, *build())
    (checkpoints.folder / "step-00000002").write(MODEL_FILE, b"killed while writing")
    assert [checkpoint.step for checkpoint in checkpoints.all()] == [1]
    restored = checkpoints.restore(*build(seed=1))
    assert restored is not None and restored.step == 1


def test_a_checkpoint_left_half_written_is_written_again(build, checkpoints) -> None:
    half = checkpoints.folder / "step-00000003"
    half.write(MODEL_FILE, b"killed while writing")
    model, optimizers = build()
    save(checkpoints, 3, model, optimizers)
    other, other_optimizers = build(seed=1)
    assert checkpoints.restore(other, other_optimizers) is not None
    assert same(weights(other), weights(model))


def test_nothing_is_pickled(build, checkpoints) -> None:
    model, optimizers = build()
    learn(model, optimizers, steps=1)
    save(checkpoints, 1, model, optimizers)
    files = {p for p in checkpoints.folder.local_path.rglob("*") if p.is_file()}
    tensors = {path for path in files if path.suffix == ".safetensors"}
    assert {path.name for path in files - tensors} == {MANIFEST}
    for path in tensors:
        assert safetensors.torch.load_file(path)
    manifest = Checkpoint.load(checkpoints.folder / "step-00000001")
    assert manifest is not None and manifest.files.keys() == {path.name for path in tensors}


def test_saving_and_restoring_leave_the_global_generator_alone(build, checkpoints) -> None:
    model, optimizers = build()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    save(checkpoints, 1, model, optimizers)
    checkpoints.restore(model, optimizers)
    assert torch.equal(torch.get_rng_state(), before)
