"""The memory of a worker, by part: a prediction from the model's shapes.

What a block keeps for its backward pass is counted tensor by tensor, as autograd saves it; a test
compares the sum with the tensors that a real model saves. docs/plan.md has the formulas.
"""

import math
from dataclasses import dataclass, replace

from orchestrator.job.job import Job
from orchestrator.job.sections import TrainConfig
from orchestrator.model.attention import SHORT
from orchestrator.model.config import ModelConfig
from orchestrator.plan.parameters import FP32, Parameters
from orchestrator.plan.shapes import Shape

BF16 = 2
STATISTIC = 4  # bytes a token of a mean or a deviation that a norm keeps
MASKED_SHARE = 0.15  # of an encoder's tokens have logits: masked language modelling

# Measured with docs/plan.md's commands; of a process, in bytes.
BASE = 360e6  # Python, torch, and what a worker imports; the kernels' code and threads
BASE_OF_RAY = 80e6  # Ray's part of a worker process
COMPILER = 350e6  # torch.compile's part
KERNELS = 115e6  # oneDNN's, one for each shape, up to the limit in `train/preload.py`
CUDA_CONTEXT = 600e6  # on the GPU, before the first tensor; not in `max_memory_allocated`
# fp32 buffers of logits that a CPU's heap holds in the end. Three are in use at once; glibc cannot
# use the holes of two others, from which small blocks were cut.
LOGIT_BUFFERS = {"cpu": 5, "cuda": 3}
# Backward passes of a block take so many times what it keeps: gradients of these, and their
# temporaries. Those of the logits are freed by then.
BLOCK_GRADIENTS = 1.5
HEAP = {"cpu": 1.05, "cuda": 1.03}  # times what is allocated: holes that fit nothing


@dataclass(frozen=True)
class Memory:
    """The predicted peak of one worker, in bytes."""

    parts: dict[str, float]  # on the device that computes: GPU memory, or this process's
    host: dict[str, float]  # on a GPU: what the process takes beside it; empty on a CPU

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def on_host(self) -> float:
        """The bytes of the machine's own memory."""
        return sum(self.host.values()) if self.host else self.total


@dataclass(frozen=True)
class Mode:
    """How a worker computes, as far as its memory depends on it."""

    precision: str  # fp32 or bf16
    compiled: bool = False
    mapped: float = 0.0  # bytes of shards that are mapped into memory
    one_shape: bool = True  # whether all rows have one length


def worker_memory(job: Job, parameters: Parameters, shape: Shape, mode: Mode) -> Memory:
    """The peak of the first worker, which also copies checkpoints.

    Args:
        shape: of its largest micro-batch.
    """
    device = "cuda" if job.cluster.gpus_per_worker else "cpu"
    model, train, precision = job.model, job.train, mode.precision
    optimizer = float(optimizer_bytes(parameters, train))
    saved = activation_bytes(model, shape, precision, device)
    gradients = BLOCK_GRADIENTS * activation_bytes(model, shape, precision, device, block=True)
    logits = max(logit_bytes(model, parameters, shape, device), gradients)
    copies = BF16 * parameters.maps if precision == "bf16" else 0
    kept, logits = HEAP[device] * (saved + copies), logits + data_bytes(shape)
    parts = {
        "weights": float(FP32 * parameters.total + parameters.buffers),
        "gradients": float(gradient_bytes(parameters, train, shape.rows)),
        "optimizer": optimizer,
        "activations": kept,
        "data and logits": logits,
    }
    validation = HEAP[device] * validation_bytes(job, parameters, shape, precision) + copies
    if validation > kept + logits:  # validations may have more rows at once
        parts["validation"] = validation - kept - logits
    snapshot = FP32 * parameters.total + optimizer
    kernels = 0.0
    if device == "cpu" and precision == "bf16" and not mode.one_shape:
        kernels = KERNELS
    process = {
        "snapshot": float(snapshot),
        "mapped shards": mode.mapped,
        "process": BASE + BASE_OF_RAY + kernels + (COMPILER if mode.compiled else 0),
    }
    if device == "cuda":
        return Memory({**parts, "CUDA": CUDA_CONTEXT}, process)
    return Memory({**parts, **process}, {})


def optimizer_bytes(parameters: Parameters, train: TrainConfig) -> int:
    """AdamW keeps two values for each parameter, Muon one for each of its matrices."""
    momentum = parameters.matrices if train.optimizer == "muon" else 0
    return FP32 * (2 * (parameters.total - momentum) + momentum)


def gradient_bytes(parameters: Parameters, train: TrainConfig, rows: int) -> int:
    """One flat buffer; with `deterministic`, one more for each micro-batch of the step."""
    parts = 0
    if train.deterministic:
        parts = math.ceil(train.global_batch_size / max(rows, 1))
    return FP32 * (parameters.total + 2) * (1 + parts)


def data_bytes(shape: Shape) -> float:
    """The tokens as int64 and their masks, and those of the step that is read ahead."""
    return 2.0 * shape.tokens * (8 + 1)


def logit_bytes(
    model: ModelConfig, parameters: Parameters, shape: Shape, device: str = "cpu"
) -> float:
    """What the logits of the vocabulary take: they, their logarithms and two gradients, in fp32."""
    if not parameters.head_maps:
        return 0.0
    tokens = shape.rows * (shape.target if model.family != "encoder" else shape.source)
    if model.family == "encoder":
        tokens = math.ceil(MASKED_SHARE * tokens)
    return float(LOGIT_BUFFERS[device] * FP32 * tokens * parameters.vocab_size)


def validation_bytes(job: Job, parameters: Parameters, shape: Shape, precision: str) -> float:
    """What a validation takes, whose rows are as long: one block at a time, and the logits.

    In bf16 these are there as they are, in fp32, and as logarithms.
    """
    device = "cuda" if job.cluster.gpus_per_worker else "cpu"
    share = math.ceil(job.train.eval_rows / job.cluster.fewest_workers)
    rows = replace(shape, rows=min(share, job.train.micro_batch_size))
    block = activation_bytes(job.model, rows, precision, device, block=True)
    buffers = 2.5 if precision == "bf16" else 2.0
    logits = logit_bytes(job.model, parameters, rows, device) / LOGIT_BUFFERS[device]
    return block + buffers * logits


def activation_bytes(
    model: ModelConfig, shape: Shape, precision: str, device: str = "cpu", block: bool = False
) -> float:
    """What the embeddings and blocks of both stacks keep for the backward pass; with `block`, what
    the largest block keeps."""
    kept = Kept(model, BF16 if precision == "bf16" else FP32, device)
    around, blocks = 0.0, {0.0: 0}
    if length := shape.source:
        tokens = shape.rows * length
        layer = kept.self_attention(length, padded=True) + kept.feed_forward()
        blocks[tokens * layer] = model.num_layers
        around += tokens * kept.around(ends_in_memory=model.family == "encoder_decoder")
    if length := shape.target:
        tokens = shape.rows * length
        layer = tokens * (kept.self_attention(length, padded=False) + kept.feed_forward())
        if model.family == "encoder_decoder":
            asked, remembered = kept.cross_attention(length, shape.source)
            layer += tokens * asked + shape.rows * shape.source * remembered
        blocks[layer] = model.layers_to_decode + blocks.get(layer, 0)
        around += tokens * kept.around()
    if block:
        return max(blocks)
    return around + sum(layers * layer for layer, layers in blocks.items())


class Kept:
    """Bytes a token that each part of a block keeps. `width` is the bytes of an activation."""

    def __init__(self, model: ModelConfig, width: int, device: str) -> None:
        self.model = model
        self.width = width
        self.device = device
        self.queries = model.num_heads * model.head_width

    def norm(self, readers: int) -> float:
        """Its input in fp32 and statistics; its output, for the linear maps that read it.

        Under autocast each of them has a bf16 copy of its own.
        """
        rms = self.model.norm == "rmsnorm"
        inside = FP32 * self.model.d_model * (2 if rms and self.device == "cpu" else 1)
        statistics = STATISTIC * (1 if rms else 2)
        copies = readers if self.width == BF16 else 1
        return inside + statistics + self.width * self.model.d_model * copies

    def dropout(self) -> float:
        """Its mask: as large as its input on a CPU, a byte for each element on a GPU."""
        if not self.model.dropout:
            return 0.0
        return self.model.d_model * (self.width if self.device == "cpu" else 1)

    def attend(
        self, length: int, seen: int, *, padded: bool, biased: bool = False, rotated: bool = False
    ) -> float:
        """Queries, their output, and what the kernel keeps, for each query; not keys and values."""
        width, heads = self.width, self.model.num_heads
        on_cpu_in_bf16 = self.device == "cpu" and width == BF16
        if biased or (on_cpu_in_bf16 and length <= SHORT):
            # Plain operations keep all probabilities. PyTorch has no fused kernel with a trained
            # bias.
            return width * (2 * self.queries + heads * seen)
        mask = width * seen if padded else 0
        # The output twice where rotated queries have another layout than the next linear map.
        vectors = 3 if rotated else 2
        return width * self.queries * vectors + STATISTIC * heads + mask

    def self_attention(self, length: int, padded: bool) -> float:
        """Norm, queries, keys, values and output of attention to the same tokens."""
        positions = self.model.positions
        attended = self.attend(
            length,
            length,
            padded=padded,
            biased=positions == "relative",
            rotated=positions == "rotary",
        )
        return self.norm(readers=3) + 2 * self.width * self.queries + attended + self.dropout()

    def cross_attention(self, length: int, source: int) -> tuple[float, float]:
        """For each token of the decoder, and for each token of the encoder's output."""
        asked = self.norm(readers=1) + self.attend(length, source, padded=True) + self.dropout()
        copies = 2 * BF16 * self.model.d_model if self.width == BF16 else 0
        return asked, copies + 2 * self.width * self.queries

    def feed_forward(self) -> float:
        """Norm, and the activation's input and output; a gate has four such vectors."""
        model = self.model
        vectors = 4 if model.is_gated else 1 if model.activation == "relu" else 2
        hidden = self.width * model.feed_forward_width * vectors
        return self.norm(readers=2 if model.is_gated else 1) + hidden + self.dropout()

    def around(self, ends_in_memory: bool = False) -> float:
        """The embedding's norm and dropout, and the last norm."""
        kept = 0.0
        if self.model.embedding_norm:
            kept += FP32 * self.model.d_model + 2 * STATISTIC
        if self.model.dropout:
            kept += self.model.d_model * (FP32 if self.device == "cpu" else 1)
        if self.model.norm_position == "pre":
            kept += self.norm(readers=0 if ends_in_memory else 1)
        return kept
