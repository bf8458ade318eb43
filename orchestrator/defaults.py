"""What a job leaves open, chosen by the size of its data and the time that it has.

A job that says how large its model is, by `num_layers`, `d_model`, `num_heads` or `init_from`, has
the fixed defaults of the schema. Any other gets all that it does not say from here.
"""

import math
from typing import Any

from orchestrator.cost import num_parameters, tokens_seen
from orchestrator.job import Job, find_task
from orchestrator.model.config import SIZES

BYTES_PER_TOKEN = 3.0  # of prose and code under a small byte-pair vocabulary: an estimate
# What a training should see of each parameter's size in tokens. Hoffmann et al. 2022 find 20 at the
# optimum of large models; small ones, trained by Muon for minutes, are best at 2 (docs/log.md).
TOKENS_A_PARAMETER = 2.0
PARAMETERS_A_TOKEN = 10.0  # of the training split, at most: more learn it by heart
UPDATES = 2_000  # that a training should come to, if its batches are not too small then
WIDTH, MUON_LR, ADAMW_LR = 128, 1e-2, 2e-3  # rates at this width; wider models take smaller ones
VOCABULARIES = [(2 << 20, 1024), (32 << 20, 2048), (1 << 30, 8192)]  # up to so many bytes
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 1024, 32_768
# An encoder pays little for a large one, and words that are one token tell more than their pieces:
# SST-2, of 0.7 MB, 0.749 with 1,024 tokens and 0.811 with 8,192 (docs/log.md).
BYTES_TO_LEARN_A_WORD = 80
DROPOUTS = [(3.0, 0.0), (10.0, 0.1)]  # up to so many epochs
MOST_DROPOUT = 0.2
MOST_ROWS = 512  # of a global batch
SHORT = 128  # tokens of a row


def derive(job: Job, source_bytes: int) -> dict[str, Any]:
    """Values for what the job does not say, by dotted key; none where it says the model's size."""
    if says_all(job):
        return {}
    model, train = job.model.model_fields_set, job.train.model_fields_set
    found: dict[str, Any] = {}
    if "vocab_size" not in job.tokenizer.model_fields_set:
        found["tokenizer.vocab_size"] = _vocabulary(job, source_bytes)
    if "max_seq_len" not in model:
        found["model.max_seq_len"] = find_task(job.task).context
    job = job.override(found)
    data_tokens = max(source_bytes / BYTES_PER_TOKEN, 1.0)
    if "size" not in model:
        found["model.size"] = _size(job, data_tokens)
        job = job.override({"model.size": found["model.size"]})
    seen = tokens_seen(job)
    if "dropout" not in model:
        found["model.dropout"] = _step(DROPOUTS, seen / data_tokens, MOST_DROPOUT)
    chosen = _training(job, seen)
    return found | {name: value for name, value in chosen.items() if name[6:] not in train}


def says_all(job: Job) -> bool:
    """Whether the job says how large its model is, so that nothing is to be chosen."""
    said = job.model.model_fields_set
    return "size" not in said and bool(said & {*SIZES["tiny"], "init_from"})


def _vocabulary(job: Job, source_bytes: int) -> int:
    if job.model.family != "encoder":
        return int(_step(VOCABULARIES, source_bytes, LARGEST_VOCABULARY))
    words = max(source_bytes // BYTES_TO_LEARN_A_WORD, SMALLEST_VOCABULARY)
    return int(min(2 ** int(math.log2(words)), LARGEST_VOCABULARY))


def _size(job: Job, data_tokens: float) -> str:
    """The largest model that the time can train and the data can teach."""
    chosen, *_ = SIZES
    for size in SIZES:
        sized = job.override({"model.size": size})
        parameters = num_parameters(sized)
        enough = tokens_seen(sized) >= TOKENS_A_PARAMETER * parameters
        if enough and parameters <= PARAMETERS_A_TOKEN * data_tokens:
            chosen = size
    return chosen


def _training(job: Job, seen: float) -> dict[str, Any]:
    """The batch and the learning rate that go with a model and its number of tokens."""
    width = WIDTH / job.model.d_model
    lr = (MUON_LR if job.train.optimizer == "muon" else ADAMW_LR) * math.sqrt(width)
    found: dict[str, Any] = {"train.lr": float(f"{lr:.1g}")}
    if job.model.max_seq_len <= SHORT:  # such rows are quickly validated on, and few say little
        found["train.eval_rows"] = 512
    if job.train.steps is None:
        rows = seen / UPDATES / job.model.max_seq_len
        power = 2 ** round(math.log2(min(max(rows, find_task(job.task).fewest_rows), MOST_ROWS)))
        workers = job.cluster.most_workers
        found["train.global_batch_size"] = -(-power // workers) * workers
    return found


def _step(steps: list[tuple[Any, Any]], value: float, beyond: Any) -> Any:
    """What belongs to the first limit that the value does not exceed."""
    return next((chosen for limit, chosen in steps if value <= limit), beyond)
