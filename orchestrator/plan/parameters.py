"""The parameters of a job's model by part, counted on the model itself without its memory."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.infer.trained_model import load_processor
from orchestrator.job.job import Job
from orchestrator.model.transformer import Transformer
from orchestrator.storage.artifact import PreparedData
from orchestrator.tasks.task import Task

FP32 = 4  # bytes of a weight, a gradient, an optimizer's value


@dataclass(frozen=True)
class Parameters:
    """How many values a model has, and which of them do what."""

    parts: dict[str, int]  # by what they are; they add up to `total`
    matrices: int  # of the blocks: Muon updates them
    encoder_maps: int  # of linear maps that see each token of the encoder's input
    decoder_maps: int
    memory_maps: int  # of cross-attention, that see each token of the encoder's output
    head_maps: int  # of the head that predicts tokens; with a tied embedding, its weights
    buffers: int  # bytes of tables that are not trained
    vocab_size: int
    num_outputs: int
    exact: bool  # whether vocabulary and outputs are those of the prepared data

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def maps(self) -> int:
        """The weights of all linear maps, of which autocast makes copies in bf16."""
        return self.encoder_maps + self.decoder_maps + self.memory_maps + self.head_maps


def count(job: Job, prepared: PreparedData | None) -> Parameters:
    """Build the job's model on the meta device, and count.

    Before the data is prepared, the vocabulary is as large as the job allows, and a head for labels
    has one output.
    """
    task = job.build_task()
    vocab_size, num_outputs = _sizes(task, job, prepared)
    with torch.device("meta"):
        model = task.build_model(vocab_size, num_outputs)
    return count_model(model, vocab_size, num_outputs, prepared is not None)


def count_model(
    model: Transformer, vocab_size: int, num_outputs: int, exact: bool = True
) -> Parameters:
    """The parameters of a model by part."""
    parts: Counter[str] = Counter()
    maps: Counter[str] = Counter()
    matrices = 0
    for name, parameter in model.named_parameters():
        parts[part_of(name)] += parameter.numel()
        if parameter.ndim < 2:
            continue
        if ".blocks." in name:
            matrices += parameter.numel()
            maps[_reads(name)] += parameter.numel()
        elif name.startswith("head."):
            maps["head"] += parameter.numel()
    if model.head_kind != "tokens":
        maps["head"] = 0  # a vector or a few outputs: nothing beside the blocks
    elif model.config.tie_embeddings and model.tokens is not None:
        maps["head"] += model.tokens.weight.numel()
    return Parameters(
        parts=dict(parts),
        matrices=matrices,
        encoder_maps=maps["encoder"],
        decoder_maps=maps["decoder"],
        memory_maps=maps["memory"],
        head_maps=maps["head"],
        buffers=sum(b.numel() * b.element_size() for b in model.buffers()),
        vocab_size=vocab_size,
        num_outputs=num_outputs,
        exact=exact,
    )


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    if name.startswith("head."):
        return "head"
    if ".blocks." not in name:
        return "norms" if "norm" in name else "embeddings"
    if "norm" in name:
        return "norms"
    return "feed-forward" if ".feed_forward." in name else "attention"


def _reads(name: str) -> str:
    """Whose tokens a linear map of a block sees."""
    if ".cross.key." in name or ".cross.value." in name:
        return "memory"
    return "encoder" if name.startswith("encoder.") else "decoder"


def _sizes(task: Task[Any], job: Job, prepared: PreparedData | None) -> tuple[int, int]:
    if prepared is not None:
        processor = load_processor(task, prepared)
        return processor.vocab_size, processor.num_outputs
    if job.model.init_from is not None and job.model.patches is None:
        from orchestrator.pretrained.model import read_config
        from orchestrator.storage.folder import Folder

        return read_config(Folder(job.model.init_from))[1], 1
    return job.tokenizer.vocab_size, 1
