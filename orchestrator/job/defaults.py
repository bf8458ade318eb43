"""Defaults for keys that a job leaves open, chosen by its data's size and its time budget.

A job that says how large its model is, by `num_layers`, `d_model` or `num_heads`, has the fixed
defaults of the schema. Any other gets all that it does not say from here; one that begins with
trained weights, by `init_from`, gets what such weights are usually trained further with.
"""

import math
from typing import Any

from orchestrator.job.cost import num_parameters, tokens_seen
from orchestrator.job.job import Job
from orchestrator.job.task_registry import find_task
from orchestrator.model.config import SIZES

BYTES_PER_TOKEN = 3.0  # an estimate for prose and code under a small byte-pair vocabulary
# The tokens that a training should read per parameter. Hoffmann et al. 2022 find 20 at the
# optimum of large models; small ones, trained by Muon for minutes, are best at 2 (docs/log.md).
TOKENS_A_PARAMETER = 2.0
PARAMETERS_A_TOKEN = 10.0  # of the training split, at most: larger models memorise it
UPDATES = 2_000  # steps of a training, unless its batches become too small
WIDTH, MUON_LR, ADAMW_LR = 128, 1e-2, 2e-3  # rates at this width; wider models take smaller ones
VOCABULARIES = [(2 << 20, 1024), (32 << 20, 2048), (1 << 30, 8192)]  # up to so many bytes
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 1024, 32_768
# A large vocabulary costs an encoder little, and whole words tell it more than their pieces:
# SST-2, of 0.7 MB, 0.749 with 1,024 tokens and 0.811 with 8,192 (docs/log.md).
BYTES_TO_LEARN_A_WORD = 80
DROPOUTS = [(3.0, 0.0), (10.0, 0.1)]  # up to so many epochs
MOST_DROPOUT = 0.2
MOST_ROWS = 512  # of a global batch
SHORT = 128  # tokens of a row

# For trained weights (docs/log.md). Devlin et al. 2019 take 2e-5 to 5e-5 at widths of 768 and
# 1,024. The same rates fit GPT-2 and Llama; narrower models take larger ones.
PRETRAINED_WIDTH, PRETRAINED_LR = 384, 1e-4
T5_LR = 4.0  # times the rate: Raffel et al. 2020 take 1e-3 with Adafactor, 3e-4 is AdamW's
LEAST_LR, MOST_LR = 1e-5, 5e-4
PRETRAINED_DECAY = 0.01
WARMUP = 0.06  # share of the steps, if the job gives steps
MINUTES = 5.0
# More passes over a small data set memorise it. A tiny data set needs many passes, since a new head
# needs a number of steps (Mosbach et al. 2021).
EPOCHS, MOST_EPOCHS, TINY = 3.0, 20.0, 400_000  # TINY in bytes
PRETRAINED_EVAL_ROWS = 512


def derive(job: Job, source_bytes: int) -> dict[str, Any]:
    """Values for the keys that the job leaves open; none if the job gives the model's size."""
    if says_all(job):
        return {}
    if job.model.init_from is not None:
        return _further(job, source_bytes)
    model, train = job.model.model_fields_set, job.train.model_fields_set
    defaults: dict[str, Any] = {}
    if "vocab_size" not in job.tokenizer.model_fields_set:
        defaults["tokenizer.vocab_size"] = _vocabulary(job, source_bytes)
    if "max_seq_len" not in model:
        defaults["model.max_seq_len"] = find_task(job.task).context
    job = job.override(defaults)
    data_tokens = max(source_bytes / BYTES_PER_TOKEN, 1.0)
    if "size" not in model:
        defaults["model.size"] = _size(job, data_tokens)
        job = job.override({"model.size": defaults["model.size"]})
    seen = tokens_seen(job)
    if "dropout" not in model:
        defaults["model.dropout"] = _step(DROPOUTS, seen / data_tokens, MOST_DROPOUT)
    chosen = _training(job, seen)
    return defaults | {name: value for name, value in chosen.items() if name[6:] not in train}


def says_all(job: Job) -> bool:
    """Whether the job gives the size of its model, so that nothing is chosen."""
    given = job.model.model_fields_set
    if job.model.init_from is not None:  # its sizes come from the weights
        return False
    return "size" not in given and bool(given & set(SIZES["tiny"]))


def _further(job: Job, source_bytes: int) -> dict[str, Any]:
    """Values for training from trained weights: a low learning rate and few epochs."""
    model, train = job.model, job.train
    is_t5 = model.family == "encoder_decoder" and model.positions == "relative"
    lr = PRETRAINED_LR * PRETRAINED_WIDTH / model.d_model * (T5_LR if is_t5 else 1.0)
    workers = job.cluster.most_workers
    defaults: dict[str, Any] = {
        "train.optimizer": "adamw",
        "train.lr": float(f"{min(max(lr, LEAST_LR), MOST_LR):.1g}"),
        "train.betas": (0.9, 0.999),
        "train.weight_decay": 0.0 if is_t5 else PRETRAINED_DECAY,
        "train.eval_rows": PRETRAINED_EVAL_ROWS,
        "train.global_batch_size": -(-train.global_batch_size // workers) * workers,
    }
    if train.steps is not None:
        defaults["train.warmup_steps"] = max(1, round(WARMUP * train.steps))
    elif not train.model_fields_set & {"minutes", "epochs"}:
        epochs = min(max(EPOCHS * TINY / max(source_bytes, 1), EPOCHS), MOST_EPOCHS)
        defaults |= {"train.minutes": MINUTES, "train.epochs": round(epochs, 1)}
    given = train.model_fields_set
    return {
        name: value for name, value in defaults.items() if name.removeprefix("train.") not in given
    }


def _vocabulary(job: Job, source_bytes: int) -> int:
    if job.model.family != "encoder":
        return int(_step(VOCABULARIES, source_bytes, LARGEST_VOCABULARY))
    words = max(source_bytes // BYTES_TO_LEARN_A_WORD, SMALLEST_VOCABULARY)
    return int(min(2 ** int(math.log2(words)), LARGEST_VOCABULARY))


def _size(job: Job, data_tokens: float) -> str:
    """The largest model that fits the time budget and the size of the data."""
    chosen, *_ = SIZES
    for size in SIZES:
        sized = job.override({"model.size": size})
        parameters = num_parameters(sized)
        enough = tokens_seen(sized) >= TOKENS_A_PARAMETER * parameters
        if enough and parameters <= PARAMETERS_A_TOKEN * data_tokens:
            chosen = size
    return chosen


def _training(job: Job, seen: float) -> dict[str, Any]:
    """The global batch and the learning rate for a model and its number of tokens."""
    width = WIDTH / job.model.d_model
    lr = (MUON_LR if job.train.optimizer == "muon" else ADAMW_LR) * math.sqrt(width)
    values: dict[str, Any] = {"train.lr": float(f"{lr:.1g}")}
    if job.model.max_seq_len <= SHORT:  # short rows validate fast, and few of them are noisy
        values["train.eval_rows"] = 512
    if job.train.steps is None:
        rows = seen / UPDATES / job.model.max_seq_len
        power = 2 ** round(math.log2(min(max(rows, find_task(job.task).fewest_rows), MOST_ROWS)))
        workers = job.cluster.most_workers
        values["train.global_batch_size"] = -(-power // workers) * workers
    return values


def _step(steps: list[tuple[Any, Any]], value: float, beyond: Any) -> Any:
    """The entry of the first limit that is not below the value."""
    return next((chosen for limit, chosen in steps if value <= limit), beyond)
