"""AdamW, Muon and the learning-rate schedule."""

import math
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from orchestrator.job.sections import TrainConfig
from orchestrator.learn.world import World, deal
from orchestrator.storage.checkpoint_files import Tensors

ITERATION = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: converges fast, to within 0.7 .. 1.2


class Optimizer(Protocol):
    """Updates its parameters in place.

    An optimizer of `torch.optim` imports PyTorch's compiler, more than a second of each start.
    """

    parameters: list[nn.Parameter]
    state: dict[nn.Parameter, Tensors]  # made with the first step

    def step(self, lr: float, taken: Tensor) -> None:
        """One update, or none where `taken`, a bool scalar on the device, is false."""


def build_optimizers(model: nn.Module, config: TrainConfig, world: World) -> list[Optimizer]:
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
        elif ".blocks." in name:
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    plain = [*embeddings, *vectors], 0.0
    if config.optimizer == "muon":
        muon = [Muon(matrices, config.weight_decay, world)] if matrices else []
        return [*muon, AdamW([plain], config.betas, eps=1e-10)]
    return [AdamW([(matrices, config.weight_decay), plain], config.betas)]


def optimizer_tensors(optimizers: list[Optimizer]) -> Tensors:
    """Their states, not copied. Everything else about them follows from the job."""
    return {
        f"optimizer.{i}.{j}.{name}": tensor
        for i, optimizer in enumerate(optimizers)
        for j, parameter in enumerate(optimizer.parameters)
        for name, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(optimizers: list[Optimizer], tensors: Tensors) -> None:
    """Set the states that `optimizer_tensors` returned. Tensors of other names are ignored."""
    for i, optimizer in enumerate(optimizers):
        optimizer.state.clear()
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, j, name = key.split(".", 3)
                parameter = optimizer.parameters[int(j)]
                state = optimizer.state.setdefault(parameter, {})
                state[name] = tensor.to(parameter.device, copy=True)


class AdamW:
    """Loshchilov and Hutter, arXiv 1711.05101, by PyTorch's fused kernel: the same bits."""

    def __init__(
        self,
        groups: list[tuple[list[nn.Parameter], float]],  # each with its weight decay
        betas: tuple[float, float],
        eps: float = 1e-8,
    ) -> None:
        self.groups = [(parameters, decay) for parameters, decay in groups if parameters]
        self.betas = betas
        self.eps = eps
        self.parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self.state: dict[nn.Parameter, Tensors] = {}

    @torch.no_grad()
    def step(self, lr: float, taken: Tensor) -> None:
        for parameters, decay in self.groups:
            states = [self._state(parameter) for parameter in parameters]
            adamw(
                list[Tensor](parameters),
                [parameter.grad for parameter in parameters if parameter.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=(~taken).float(),  # with 1 the kernel changes nothing
                amsgrad=False,
                maximize=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                lr=lr,
                weight_decay=decay,
            )

    def _state(self, parameter: nn.Parameter) -> Tensors:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]


class Muon:
    """Momentum, orthogonalised. Jordan 2024; scaled as in Moonshot AI, arXiv 2502.16982.

    The workers share the work: each orthogonalises some of the matrices and sends the results.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        weight_decay: float,
        world: World,
        momentum: float = 0.95,
    ) -> None:
        self.parameters = matrices
        self.state: dict[nn.Parameter, Tensors] = {}
        self.weight_decay = weight_decay
        self.world = world
        self.momentum = momentum
        self._owned = deal([m.numel() * min(m.shape) for m in matrices], world.size)

    @torch.no_grad()
    def step(self, lr: float, taken: Tensor) -> None:
        matrices, momentum = self.parameters, self.momentum
        take = taken.float()
        for matrix in matrices:
            assert matrix.grad is not None
            if matrix not in self.state:
                self.state[matrix] = {"momentum_buffer": torch.zeros_like(matrix)}
            average = self.state[matrix]["momentum_buffer"]
            # A skipped gradient may be NaN, and 0 times NaN is NaN.
            matrix.grad.copy_(torch.where(taken, matrix.grad, average))
            average.lerp_(matrix.grad, 1 - momentum)
        directions = []
        for i in self._owned[self.world.rank]:
            gradient, average = matrices[i].grad, self.state[matrices[i]]["momentum_buffer"]
            assert gradient is not None
            directions.append(orthogonalised(gradient.lerp(average, momentum)))
        updates = self._exchange(matrices, directions)
        for matrix, direction in zip(matrices, updates, strict=True):
            matrix.mul_(1 - take * (lr * self.weight_decay))
            size = 0.2 * math.sqrt(max(matrix.shape))  # the root mean square of AdamW's updates
            matrix.sub_(direction.float() * take * (lr * size))

    def _exchange(self, matrices: list[nn.Parameter], own: list[Tensor]) -> list[Tensor]:
        """The directions of all matrices, in order, from this worker's own and the others'."""
        if self.world.size == 1:
            return own
        sizes = [[matrices[i].numel() for i in owned] for owned in self._owned]
        sent = torch.zeros(max(map(sum, sizes)), dtype=torch.bfloat16, device=self.world.device)
        if own:
            sent[: sum(sizes[self.world.rank])] = torch.cat([part.flatten() for part in own])
        received = sent.new_empty(self.world.size, len(sent))
        # As bytes, which every backend supports.
        dist.all_gather(list(received.view(torch.uint8)), sent.view(torch.uint8), self.world.group)
        by_matrix: dict[int, Tensor] = {}
        for owned, counts, content in zip(self._owned, sizes, received, strict=True):
            for i, piece in zip(owned, content[: sum(counts)].split(counts), strict=True):
                by_matrix[i] = piece.view_as(matrices[i])
        return [by_matrix[i] for i in range(len(matrices))]


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix, in bf16: singular values in 0.7 .. 1.2.

    The autocast around it sets the precision of the products: on a CPU without AMX, bf16 takes 1.6
    times as long as fp32; with AMX, a quarter.
    """
    a, b, c = ITERATION
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).bfloat16()


def learning_rate(config: TrainConfig, step: int, total_steps: int | None) -> float:
    """Linear warm-up, then a cosine down to `min_lr_ratio`; flat until `total_steps` is known."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if total_steps is None or total_steps <= config.warmup_steps:
        return config.lr
    progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * cosine)
