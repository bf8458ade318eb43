"""Estimates of a training's cost from the job alone, and whether compiling pays off."""

import shutil

from orchestrator.job.job import Job
from orchestrator.job.task_registry import find_task

# The share of a step's time that torch.compile saves, and the seconds before the first step.
COMPILE_ON_GPU = (0.17, 40.0)  # torchtitan's and nanoGPT's ladders
COMPILE_ON_CPU = (0.04, 25.0)  # measured at 14M parameters: 1.03 to 1.07 times as fast
FLOPS_A_SECOND = {"cpu": 6e10, "cuda": 1.5e14}  # reached in training, roughly, by a core or a GPU


def train_seconds(job: Job) -> float:
    """The estimated seconds of a training's steps, if all rows fill the context."""
    config = job.train
    if config.steps is None:
        return 60.0 * config.budget_minutes
    tokens = config.steps * config.global_batch_size * job.model.max_seq_len
    return tokens / tokens_a_second(job)


def tokens_seen(job: Job) -> float:
    """The estimated number of tokens that a training reads."""
    return train_seconds(job) * tokens_a_second(job)


def tokens_a_second(job: Job) -> float:
    """The estimated tokens per second of the fewest workers, at 6 N + 12 L D T operations each."""
    model = job.model
    a_token = 6 * num_parameters(job) + 12 * model.num_layers * model.d_model * model.max_seq_len
    units = job.cluster.gpus_per_worker or job.cluster.cpus_per_worker
    kind = "cuda" if job.cluster.gpus_per_worker else "cpu"
    return FLOPS_A_SECOND[kind] * units * job.cluster.fewest_workers / a_token


def num_parameters(job: Job) -> int:
    """The estimated number of parameters; a tied embedding counts once."""
    model = job.model
    block = 4 * model.d_model**2 + 2 * model.d_model * model.feed_forward_width
    layers = model.num_layers + (model.layers_to_decode if model.family == "encoder_decoder" else 0)
    return layers * block + model.d_model * job.tokenizer.vocab_size


def compiles(job: Job) -> bool:
    """Whether the training is compiled: when that saves more time than it takes.

    A function of the job alone: compiled kernels round otherwise, and a resumed run does the same.
    Where samples differ in length, each length would be compiled anew, for minutes.
    """
    if job.train.compile != "auto":
        return job.train.compile
    if not find_task(job.task).one_shape:
        return False
    if not job.cluster.gpus_per_worker and shutil.which("c++") is None:
        return False
    gain, wait = COMPILE_ON_GPU if job.cluster.gpus_per_worker else COMPILE_ON_CPU
    return train_seconds(job) * gain > wait
