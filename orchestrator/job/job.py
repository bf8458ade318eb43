"""The job: one YAML file, typed, checked, and hashed by what changes each stage's result."""

import hashlib
import importlib
import inspect
import json
import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from orchestrator.data.config import DataConfig
from orchestrator.errors import UserError, did_you_mean
from orchestrator.job.inputs import TOKENIZER_FILES, Stamps, model_files, source_files
from orchestrator.job.search_space import NOT_SWEPT, Domain, TuneConfig
from orchestrator.job.section import Key, Section
from orchestrator.model.config import SIZES, Family, ModelConfig
from orchestrator.processors.text import TokenizerConfig
from orchestrator.progress import Stage
from orchestrator.tasks.task import Task

TASKS: dict[str, Family] = {  # and the family of each where a job names none
    "extractive_question_answering": "encoder",
    "language_modelling": "decoder",
    "masked_language_modelling": "encoder",
    "question_answering": "encoder_decoder",
    "text_classification": "encoder",
    "text_regression": "encoder",
    "translation": "encoder_decoder",
}
# What a sweep tries where the job does not say: what changes most results, and how far it may.
SPACE: dict[str, dict[str, Any]] = {
    "train.lr": {"loguniform": [5e-4, 2e-2]},
    "train.weight_decay": {"loguniform": [0.01, 0.5]},
    "model.dropout": {"uniform": [0.0, 0.3]},
}
SPACE_OF_PRETRAINED: dict[str, dict[str, Any]] = {
    "train.lr": {"loguniform": [1e-5, 5e-4]},
    "train.weight_decay": {"loguniform": [1e-3, 0.1]},
    "model.dropout": {"uniform": [0.0, 0.2]},
}

FORMAT = 4  # of what stages leave in storage: raised where older artifacts must not be taken up

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """The `train:` section of a job."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; or give minutes")
    minutes: float | None = Field(
        None, gt=0, description="time budget; the steps that fit are measured, then fixed"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="the time budget ends after so many passes over the training split, too",
    )
    global_batch_size: int = Field(32, ge=1, description="samples a step, over all workers")
    micro_batch_size: int = Field(
        32, ge=1, description="samples a worker holds at once; the rest is accumulated"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "muon", description="muon: AdamW outside the blocks"
    )
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(40, ge=0, description="steps of linear warm-up")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="where the cosine ends, times lr")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="AdamW's moment decays")
    weight_decay: float = Field(0.1, ge=0, description="of the matrices inside the blocks")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: the one in which a step of this model is the faster, measured"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the weights and of the sample order")
    deterministic: bool = Field(
        False, description="the same bits for any number of workers; costs memory and traffic"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile; auto: where the plan says that it pays for itself"
    )
    spike_sigmas: float = Field(
        6.0, ge=0, description="a loss this far above its usual spread is skipped; 0: none is"
    )
    eval_every: int | None = Field(
        None, ge=1, description="steps between validations, each with a checkpoint; a tenth of all"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between further checkpoints: the most that is ever lost"
    )
    eval_rows: int = Field(128, ge=1, description="validation samples looked at each time")
    profile_steps: int = Field(
        0, ge=0, le=20, description="steps to record with torch's profiler, after each start"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give steps or minutes, not both")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self

    @property
    def budget_minutes(self) -> float:
        """The time budget where `steps` is not given."""
        return self.minutes if self.minutes is not None else 5.0


class ServeConfig(Section):
    """The `serve:` section of a job."""

    replicas: int = Field(1, ge=1, description="copies of the model")
    host: str = Field("127.0.0.1", description="address that the endpoint listens on")
    port: int = Field(8000, ge=1, le=65_535, description="port that the endpoint listens on")
    route_prefix: str = Field("/", pattern=r"^/[A-Za-z0-9_./-]*$", description="path before /v1")
    max_tokens: int = Field(64, ge=1, description="tokens generated where a request does not say")
    max_queued_requests: int = Field(
        64, ge=1, description="more waiting requests than this get 503"
    )
    sample_prompt: str = Field("The", description="prompt of the sample at the end of a run")


Workers = Annotated[int, Field(ge=1)]


class ClusterConfig(Section):
    """The `cluster:` section of a job."""

    workers: Workers | tuple[Workers, Workers] = Field(
        1, description="training processes; or [fewest, most], as the cluster has room for"
    )
    cpus_per_worker: int = Field(1, ge=1, description="cores, and so threads, of each")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each")
    max_failures: int = Field(
        3, ge=0, description="losses of workers in a row, without a checkpoint between them"
    )
    hang_seconds: float = Field(
        15.0, ge=5, description="a worker that is silent this long is killed and replaced"
    )
    spares: bool = Field(
        True, description="keep a process ready for each worker: quicker restarts, 0.4 GB each"
    )

    @field_validator("workers")
    @classmethod
    def _fewest_first(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError("the fewest come first")
        return workers

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    @property
    def fewest_workers(self) -> int:
        return self.range[0]

    @property
    def most_workers(self) -> int:
        return self.range[1]


def _valid_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            "use letters, digits, '.', '_' and '-', at most 100, a letter or digit first"
        )
    return name


def _valid_task(name: str) -> str:
    try:
        if name not in TASKS:  # those need no proof, and torch takes its time to import
            find_task(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    return name


class Job(Section):
    """One job: what to learn, from what, how, and where to."""

    name: Annotated[str, AfterValidator(_valid_name)] = Field(description="names the run's folder")
    task: Annotated[str, AfterValidator(_valid_task)] = Field(
        description=f"{', '.join(TASKS)}, or an import path my_package.module:MyTask"
    )
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig | None = None
    serve: ServeConfig = ServeConfig()
    cluster: ClusterConfig = ClusterConfig()
    storage: str = Field(
        "runs", min_length=1, description="where runs are kept: a folder or a URI (s3://, gs://)"
    )

    _model_files: Stamps = PrivateAttr({})  # that `model.init_from` names

    @model_validator(mode="before")
    @classmethod
    def _family_of_task(cls, data: Any) -> Any:
        """The task decides which stacks a model has, where the job does not."""
        if not isinstance(data, dict) or not isinstance(data.get("task"), str):
            return data
        data = _with_space(data)
        model = data.get("model", {})
        if (
            isinstance(model, dict)
            and isinstance(model.get("init_from"), str)
            and model["init_from"]
        ):
            return {**data, "model": _initialised(model)}
        if not isinstance(model, dict) or "family" in model:
            return data
        try:
            name = data["task"]
            family = TASKS[name] if name in TASKS else find_task(name).families[0]
        except UserError:  # told of with the field
            return data
        return {**data, "model": {"family": family, **model}}

    @model_validator(mode="after")
    def _look_at_model_files(self) -> Self:
        """As they are now: a run names its folders by what it began with, whatever comes later."""
        if self.model.init_from is not None:
            try:
                self._model_files = model_files(self.model.init_from)
            except OSError as error:
                raise ValueError(f"model.init_from: {error}") from None
        return self

    def problems(self) -> list[tuple[Key, str]]:
        """What is wrong across sections: the key, and the rest of the sentence."""
        found: list[tuple[Key, str]] = []
        if problem := self._batch_problem():
            batch = self.train.global_batch_size
            found.append((("train", "global_batch_size"), f" = {batch}: {problem}"))
        if self.tune is None:
            return found
        for name, problem in self.tune.problems():
            found.append((("tune", *name.split(".", 1)), problem))
        for name, domain in self.tune.space.items() if not found else ():
            if problem := self._space_problem(name, domain):
                found.append((("tune", "space", name), f": {problem}"))
        return found

    def _space_problem(self, name: str, domain: Domain) -> str | None:
        if not name.startswith(("train.", "model.")) or name in NOT_SWEPT:
            return "only keys of train and model can be swept, without the budget and max_seq_len"
        for value in domain.examples():
            try:
                tried = self.override({**_first_values(domain), name: value})
            except UserError as error:
                return str(error)
            if problem := tried._batch_problem():
                return f"{value}: {problem}"
        return None

    def _batch_problem(self) -> str | None:
        """A fixed group gets equal parts; an elastic one parts that differ by a sample at most."""
        batch, workers = self.train.global_batch_size, self.cluster.workers
        if isinstance(workers, int) and batch % workers:
            return f"cannot be dealt evenly to cluster.workers = {workers}"
        if batch < self.cluster.most_workers:
            return f"leaves some of {self.cluster.most_workers} workers without a sample"
        if self.tune is not None and batch % self.tune.workers:
            return f"cannot be dealt evenly to tune.workers = {self.tune.workers}"
        return None

    def override(self, values: dict[str, Any]) -> "Job":
        """This job with other values, by dotted key.

        Raises:
            UserError: naming the first value that is wrong.
        """
        data = self.model_dump()
        if "model.size" in values:
            data["model"] = {k: v for k, v in data["model"].items() if k not in SIZES["tiny"]}
        for name, value in values.items():
            override(data, name, value)
        try:
            return Job.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            given = "" if isinstance(first["input"], dict) else f" = {first['input']}"
            message = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{name}{given}: {message}") from None

    def build_task(self) -> Task[Any]:
        """The task of this job.

        Raises:
            UserError: where its name or import path leads to no task, or to one of other models.
        """
        task = find_task(self.task)
        if self.model.family not in task.families:
            raise UserError(
                f"model.family = {self.model.family}: {self.task} is for "
                f"{' or '.join(task.families)}"
            )
        return task(self.data, self.tokenizer, self.model)

    def fingerprint(self, stage: Stage, inputs: str = "") -> str:
        """12 hex digits of all that changes the stage's result: its settings and its inputs.

        Where a job runs (workers, storage, replicas), how it is cut up (micro-batches) and what is
        recorded of it (a profile) are not part of it. `inputs` names what the stage reads, such as
        the listing of the data files. The weights that the job begins with and the code of a
        user's own task are hashed here.
        """
        whole = self.model_dump(mode="json")
        unseen = {"checkpoint_every", "profile_steps"}
        if not self.train.deterministic:  # with it, its cuts are where the sums are taken
            unseen.add("micro_batch_size")
        trained = {k: v for k, v in whole["train"].items() if k not in unseen}
        read = {k: v for k, v in whole["data"].items() if k != "max_bad_rows"}
        source = source_files(find_task(self.task)) if self.task not in TASKS else {}
        weights = self._model_files
        tokenizer = {name: weights[name] for name in TOKENIZER_FILES if name in weights}
        parts: dict[str, Any] = {
            "prepare": [
                self.task,
                source,
                read,
                whole["tokenizer"],
                self.model.max_seq_len,
                self.model.init_from,
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
            + (["best trial"] if self.tune and self.tune.deploy_best_trial else []),
            "evaluate": [source],
            "serve": [{k: v for k, v in whole["serve"].items() if k != "replicas"}],
        }
        text = json.dumps([stage, FORMAT, parts[stage], inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _first_values(domain: Domain) -> dict[str, Any]:
    """Values of other keys beside which a domain is tried."""
    conditions = (domain.when or {}).items()
    return {key: wanted[0] if isinstance(wanted, list) else wanted for key, wanted in conditions}


def _with_space(data: dict[str, Any]) -> dict[str, Any]:
    """Something to sweep, where a job asks for a sweep and does not say of what."""
    tune, model = data.get("tune"), data.get("model")
    if not isinstance(tune, dict) or tune.get("space"):
        return data
    pretrained = isinstance(model, dict) and model.get("init_from") is not None
    return {**data, "tune": {**tune, "space": SPACE_OF_PRETRAINED if pretrained else SPACE}}


def _initialised(model: dict[str, Any]) -> dict[str, Any]:
    """A model section with the architecture of the weights that it begins with.

    Their place becomes absolute here, where the job is read: workers run in folders of their own.

    Raises:
        ValueError: where they cannot be read, or a key contradicts them.
    """
    # Few jobs need these, and their import takes its time.
    from orchestrator.pretrained.model import read_config
    from orchestrator.storage.folder import Folder

    folder = Folder(os.path.expanduser(model["init_from"]))
    try:
        config, _ = read_config(folder)
    except (UserError, OSError) as error:
        raise ValueError(f"model.init_from: {error}") from None
    if "size" in model:
        raise ValueError("model.size: model.init_from has sizes of its own")
    theirs = config.model_dump()
    for key, value in model.items():
        if key not in theirs or key in ("dropout", "init_from") or value == theirs[key]:
            continue
        is_shorter = key == "max_seq_len" and isinstance(value, int) and value < theirs[key]
        if not is_shorter or config.patches is not None:
            raise ValueError(f"model.{key} = {value}: model.init_from has {theirs[key]}")
    return {**theirs, **model, "init_from": folder.uri}


def override(data: dict[str, Any], name: str, value: Any) -> Key:
    """Set a dotted key of plain job data, making the sections on the way; returns its path."""
    key = tuple(name.split("."))
    if key[:2] == ("tune", "space") and len(key) > 2:
        key = ("tune", "space", ".".join(key[2:]))  # a key of the space is itself dotted
    for part in key[:-1]:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    data[key[-1]] = value
    return key


def find_task(name: str) -> type[Task[Any]]:
    """The task class of a built-in name or of an import path `package.module:Class`."""
    built_in = f"orchestrator.tasks.{name}:{name.title().replace('_', '')}"
    path = built_in if name in TASKS else name
    module_name, _, class_name = path.partition(":")
    if not class_name or not all(part.isidentifier() for part in module_name.split(".")):
        close = f"{meant} else " if (meant := did_you_mean(name, TASKS)) else ""
        raise UserError(
            f"there is no such task; {close}use {', '.join(TASKS)}, or an "
            f"import path such as my_package.my_task:MyTask"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError("is not a subclass of orchestrator.tasks.task.Task")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"does not define {missing}")
    return found


def json_schema() -> str:
    """The JSON schema of a job file, for editors."""
    schema = Job.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "An orchestrator job"
    schema["properties"]["base"] = {"type": "string", "description": "a job file this one extends"}
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)  # a base file may hold what is required
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
