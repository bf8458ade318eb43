"""The plan of a job: what it will do and need, before it starts anything."""

import math
from dataclasses import dataclass

import torch

from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import total_bytes
from orchestrator.job.cost import compiles, train_seconds
from orchestrator.job.defaults import BYTES_PER_TOKEN
from orchestrator.job.job import Job
from orchestrator.job.search_space import TuneConfig
from orchestrator.storage.artifact import PreparedData


@dataclass(frozen=True)
class Plan:
    """The plan of a job. Sample counts are estimates until the data is prepared."""

    parameters: int
    source_files: int
    source_bytes: int
    train_samples: int
    samples_are_estimated: bool
    tokens_per_step: int
    steps: int | None  # None: as many as fit into the time budget
    epochs: float | None
    accumulation: dict[int, int]  # micro-batches a step, by the number of workers
    sweep: str
    train_seconds: float  # an estimate, or the time budget if there is one
    compiles: bool


def make_plan(job: Job, files: list[SourceFile], prepared: PreparedData | None) -> Plan:
    """Derive a plan without touching Ray."""
    with torch.device("meta"):
        model = job.build_task().build_model(job.tokenizer.vocab_size, num_outputs=1)
    config = job.train
    source_bytes = total_bytes(files)
    if prepared is not None:
        samples = prepared.rows("train")
    else:
        tokens = source_bytes / BYTES_PER_TOKEN
        share = 1.0 - job.data.validation_fraction - job.data.test_fraction
        samples = int(tokens * share / job.model.max_seq_len)
    accumulation = {
        workers: math.ceil(math.ceil(config.global_batch_size / workers) / config.micro_batch_size)
        for workers in sorted(set(job.cluster.range))
    }
    epochs = None
    if config.steps is not None and samples:
        epochs = config.steps * config.global_batch_size / samples
    return Plan(
        train_seconds=train_seconds(job),
        compiles=compiles(job),
        parameters=model.num_parameters(),
        source_files=len(files),
        source_bytes=source_bytes,
        train_samples=samples,
        samples_are_estimated=prepared is None,
        tokens_per_step=config.global_batch_size * job.model.max_seq_len,
        steps=config.steps,
        epochs=epochs,
        accumulation=accumulation,
        sweep=_sweep(job.tune) if job.tune is not None else "none",
    )


def _sweep(config: TuneConfig) -> str:
    repeats = f", up to {config.repeats} seeds each" if config.repeats > 1 else ""
    budget = f", {config.minutes:g} minutes at most" if config.minutes else ""
    return (
        f"{config.configurations} configurations by {config.searched_by}, {config.scheduler}, "
        f"{config.steps:,} steps each{repeats}{budget}: {', '.join(sorted(config.space))}"
    )
