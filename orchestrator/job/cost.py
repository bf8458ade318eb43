"""What a training will cost, as far as the job tells, and what pays for itself in it."""

import shutil

from orchestrator.job.job import Job
from orchestrator.job.task_registry import find_task

# What torch.compile gains of a step's time, and the seconds that it takes before the first one.
COMPILE_ON_GPU = (0.17, 40.0)  # torchtitan's and nanoGPT's ladders
COMPILE_ON_CPU = (0.04, 25.0)  # measured at 14M parameters: 1.03 to 1.07 times as fast
FLOPS_A_SECOND = {"cpu": 6e10, "cuda": 1.5e14}  # of a core, of a GPU: what training reaches, about


def train_seconds(job: Job) -> float:
    """About how long the steps of a training take, were no row shorter than the context."""
    config = job.train
    if config.steps is None:
        return 60.0 * config.budget_minutes
    tokens = config.steps * config.global_batch_size * job.model.max_seq_len
    return tokens / tokens_a_second(job)


def tokens_seen(job: Job) -> float:
    """About how many tokens a training learns from."""
    return train_seconds(job) * tokens_a_second(job)


def tokens_a_second(job: Job) -> float:
    """6 N + 12 L D T operations a token, on the fewest workers that the job may have."""
    model = job.model
    a_token = 6 * num_parameters(job) + 12 * model.num_layers * model.d_model * model.max_seq_len
    units = job.cluster.gpus_per_worker or job.cluster.cpus_per_worker
    kind = "cuda" if job.cluster.gpus_per_worker else "cpu"
    return FLOPS_A_SECOND[kind] * units * job.cluster.fewest_workers / a_token


def num_parameters(job: Job) -> int:
    """About how many numbers the model of a job has, a tied embedding once."""
    model = job.model
    block = 4 * model.d_model**2 + 2 * model.d_model * model.feed_forward_width
    layers = model.num_layers + (model.layers_to_decode if model.family == "encoder_decoder" else 0)
    return layers * block + model.d_model * job.tokenizer.vocab_size


def compiles(job: Job) -> bool:
    """Whether the training is to be compiled: it gains more than it waits for.

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
