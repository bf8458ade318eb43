"""Fingerprints of stages: hashes of the settings that change a stage's result."""

import hashlib
import json
from typing import Any

from orchestrator.job.inputs import TOKENIZER_FILES, source_files
from orchestrator.job.job import Job
from orchestrator.job.task_registry import TASKS, find_task
from orchestrator.progress import Stage
from orchestrator.storage.submitted import lasting_name

# Of `serve:`, the settings of how many answer, where and whom, and of how they are replaced: not of
# what they answer.
UNSERVED = (
    *("replicas", "host", "port", "route_prefix", "keys", "open"),
    *("sample_prompt", "gate", "canary", "shadow", "canary_requests", "canary_seconds"),
)
FORMAT = 4  # of the artifacts: raised when older ones must not be reused


def fingerprint(job: Job, stage: Stage, inputs: str = "") -> str:
    """12 hex digits of everything that changes a stage's result: its settings and its inputs.

    Where a job runs (workers, storage, replicas), how a batch is cut (micro-batches) and what is
    recorded (a profile) are not hashed. `inputs` names what the stage reads, such as the listing of
    the data files. The files of `model.init_from` and the source code of a user's own task are
    hashed, too.
    """
    whole = job.model_dump(mode="json")
    if job.model.init_from is not None:
        whole["model"]["init_from"] = lasting_name(job.model.init_from)
    unseen = {"checkpoint_every", "profile_steps"}
    if not job.train.deterministic:  # if it is, micro-batches decide how sums round
        unseen.add("micro_batch_size")
    trained = {k: v for k, v in whole["train"].items() if k not in unseen}
    read = {k: v for k, v in whole["data"].items() if k != "max_bad_rows"}
    source = source_files(find_task(job.task)) if job.task not in TASKS else {}
    weights = job.model_files
    tokenizer = {name: weights[name] for name in TOKENIZER_FILES if name in weights}
    parts: dict[str, Any] = {
        "prepare": [
            job.task,
            source,
            read,
            whole["tokenizer"],
            job.model.max_seq_len,
            whole["model"]["init_from"],
            tokenizer,
        ],
        "tune": [
            source,
            whole["model"],
            weights,
            {k: v for k, v in trained.items() if k not in ("steps", "minutes", "epochs")},
            whole["tune"],
        ],
        "train": [source, whole["model"], weights, trained]
        + (["best trial"] if job.tune and job.tune.deploy_best_trial else []),
        "evaluate": [source],
        "serve": [{k: v for k, v in whole["serve"].items() if k not in UNSERVED}],
    }
    text = json.dumps([stage, FORMAT, parts[stage], inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
