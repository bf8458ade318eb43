"""AdamW, Muon and the learning-rate schedule."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.job import TrainConfig
from orchestrator.world import World

ITERATION = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: quick, and good enough within 0.7 .. 1.2


def build_optimizers(
    model: nn.Module, config: TrainConfig, world: World
) -> list[torch.optim.Optimizer]:
    """The optimizers that together update every parameter that is not frozen, each once.

    With `muon`, the matrices of the blocks get Muon and everything else AdamW; Muon's update is
    scaled to AdamW's usual size, so one learning rate serves both. Vectors (norms) and embeddings
    are not decayed.
    """
    matrices, embeddings, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif name.startswith("blocks."):
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    plain = [{"params": [*embeddings, *vectors], "weight_decay": 0.0}]
    if config.optimizer == "muon":
        adamw = torch.optim.AdamW(plain, lr=config.lr, betas=config.betas, eps=1e-10, fused=True)
        if not matrices:
            return [adamw]
        return [Muon(matrices, config.lr, config.weight_decay, world), adamw]
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    return [torch.optim.AdamW([decayed, *plain], lr=config.lr, betas=config.betas, fused=True)]


def update(optimizers: list[torch.optim.Optimizer], lr: float, taken: Tensor) -> None:
    """One step of all, or none where `taken`, a bool scalar on the device, is false."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]  # what GradScaler sets
        optimizer.step()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. Jordan 2024; scaled as in Moonshot AI, arXiv 2502.16982.

    The workers share the work: each orthogonalises some of the matrices and gives them to the rest.
    """

    found_inf: Tensor  # 1 where the step is to be skipped

    def __init__(
        self,
        matrices: list[nn.Parameter],
        lr: float,
        weight_decay: float,
        world: World,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.world = world
        self._owned = _deal(matrices, world.size)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        matrices, momentum = group["params"], group["momentum"]
        taken = 1 - self.found_inf
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            # What is skipped may be no number, and 0 times that is none either.
            matrix.grad.copy_(torch.where(taken > 0, matrix.grad, state["momentum_buffer"]))
            state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        mine = []
        for i in self._owned[self.world.rank]:
            matrix = matrices[i]
            mine.append(
                orthogonalised(matrix.grad.lerp(self.state[matrix]["momentum_buffer"], momentum))
            )
        updates = self._exchange(matrices, mine)
        for matrix, direction in zip(matrices, updates, strict=True):
            matrix.mul_(1 - taken * (group["lr"] * group["weight_decay"]))
            size = 0.2 * math.sqrt(max(matrix.shape))  # the root mean square of AdamW's updates
            matrix.sub_(direction.float() * taken * (group["lr"] * size))

    def _exchange(self, matrices: list[nn.Parameter], mine: list[Tensor]) -> list[Tensor]:
        """The updates of all matrices, in their order, from those of each worker."""
        if self.world.size == 1:
            return mine
        sizes = [[matrices[i].numel() for i in owned] for owned in self._owned]
        box = torch.zeros(max(map(sum, sizes)), dtype=torch.bfloat16, device=self.world.device)
        if mine:
            box[: sum(sizes[self.world.rank])] = torch.cat([part.flatten() for part in mine])
        boxes = box.new_empty(self.world.size, len(box))
        # Sent as bytes, which every backend knows.
        dist.all_gather(list(boxes.view(torch.uint8)), box.view(torch.uint8), self.world.group)
        found: dict[int, Tensor] = {}
        for owned, counts, content in zip(self._owned, sizes, boxes, strict=True):
            for i, piece in zip(owned, content[: sum(counts)].split(counts), strict=True):
                found[i] = piece.view_as(matrices[i])
        return [found[i] for i in range(len(matrices))]


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, about, in bf16: singular values within 0.7 .. 1.2."""
    a, b, c = ITERATION
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _deal(matrices: list[nn.Parameter], workers: int) -> list[list[int]]:
    """Which worker orthogonalises which matrices, in their order.

    The costliest is dealt first, and each to who has least to do.
    """
    cost = [m.numel() * min(m.shape) for m in matrices]
    owned: list[list[int]] = [[] for _ in range(workers)]
    load = [0] * workers
    for i in sorted(range(len(matrices)), key=lambda i: (-cost[i], i)):
        worker = load.index(min(load))
        owned[worker].append(i)
        load[worker] += cost[i]
    return [sorted(indices) for indices in owned]


def learning_rate(config: TrainConfig, step: int, total_steps: int | None) -> float:
    """Linear warm-up, then a cosine down to `min_lr_ratio`; flat while the end is not yet known."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if total_steps is None or total_steps <= config.warmup_steps:
        return config.lr
    progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * cosine)
