"""The job: one YAML file, typed and checked."""

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator

from orchestrator.data.config import DataConfig
from orchestrator.errors import UserError
from orchestrator.job.api_keys import access_problems
from orchestrator.job.init_from import Weights, find_weights, with_architecture
from orchestrator.job.inputs import Stamps
from orchestrator.job.keys import Key, set_key
from orchestrator.job.request_log import log_problems
from orchestrator.job.search_space import NOT_SWEPT, Domain, TuneConfig, with_default_space
from orchestrator.job.sections import ClusterConfig, ServeConfig, TrainConfig
from orchestrator.job.strict_section import StrictSection
from orchestrator.job.task_registry import TASKS, find_task
from orchestrator.job.vllm import vllm_problems
from orchestrator.model.config import SIZES, ModelConfig
from orchestrator.processors.text import TokenizerConfig
from orchestrator.storage.folder import Folder
from orchestrator.storage.submitted import find_storage
from orchestrator.tasks.task import Task

STORAGE = "runs"


def _valid_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            "use letters, digits, '.', '_' and '-', at most 100, a letter or digit first"
        )
    return name


def _valid_task(name: str) -> str:
    try:
        if name not in TASKS:  # importing a built-in task would import torch, which takes seconds
            find_task(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    return name


class Job(StrictSection):
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
        STORAGE, min_length=1, description="where runs are kept: a folder or a URI (s3://, gs://)"
    )

    _weights: Weights | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _family_of_task(cls, data: Any) -> Any:
        """Fill in the family and the architecture, which follow from the task or the weights."""
        if not isinstance(data, dict) or not isinstance(data.get("task"), str):
            return data
        data = with_default_space(data)
        model = data.get("model", {})
        if (
            isinstance(model, dict)
            and isinstance(model.get("init_from"), str)
            and model["init_from"]
        ):
            weights = find_weights(model["init_from"], _run_folder(data))
            return {**data, "model": with_architecture(model, weights)}
        if not isinstance(model, dict) or "family" in model:
            return data
        try:
            name = data["task"]
            family = TASKS[name] if name in TASKS else find_task(name).families[0]
        except UserError:  # reported with the field `task`
            return data
        return {**data, "model": {"family": family, **model}}

    @model_validator(mode="after")
    def _look_at_weights(self) -> Self:
        """Look at the files of `model.init_from` now, so that fingerprints do not change later."""
        if self.model.init_from is not None:
            run = find_storage(self.storage, Path.cwd()) / self.name
            self._weights = find_weights(self.model.init_from, run)
        return self

    @property
    def weights(self) -> Weights | None:
        """What is known of the weights of `model.init_from`."""
        return self._weights

    @property
    def model_files(self) -> Stamps:
        """The files of `model.init_from`, with sizes and modification times."""
        return {} if self._weights is None else self._weights.files

    @property
    def gpus_per_replica(self) -> float:
        """The GPUs of a replica of the endpoint: as many as of a worker, unless the job says."""
        own = self.serve.gpus_per_replica
        return self.cluster.gpus_per_worker if own is None else own

    def problems(self) -> list[tuple[Key, str]]:
        """Problems between sections: the key, and the rest of the sentence."""
        problems: list[tuple[Key, str]] = []
        if problem := self._batch_problem():
            batch = self.train.global_batch_size
            problems.append((("train", "global_batch_size"), f" = {batch}: {problem}"))
        problems += access_problems(self.serve) + log_problems(self.serve.log)
        problems += vllm_problems(self.serve, self.model.family, self.gpus_per_replica)
        if self.tune is None:
            return problems
        if self.tune.workers > 1 and 0 < self.cluster.gpus_per_worker < 1:
            problem = f" = {self.cluster.gpus_per_worker:g}: the {self.tune.workers} workers of a"
            problem += " trial cannot share a GPU; give each 1, or set tune.workers to 1"
            problems.append((("cluster", "gpus_per_worker"), problem))
        for name, problem in self.tune.problems():
            problems.append((("tune", *name.split(".", 1)), problem))
        for name, domain in self.tune.space.items() if not problems else ():
            if problem := self._space_problem(name, domain):
                problems.append((("tune", "space", name), f": {problem}"))
        return problems

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
        """Why the global batch does not fit the workers. Elastic groups may have unequal parts."""
        batch, workers = self.train.global_batch_size, self.cluster.workers
        if isinstance(workers, int) and batch % workers:
            return f"cannot be dealt evenly to cluster.workers = {workers}"
        if batch < self.cluster.most_workers:
            return f"leaves some of {self.cluster.most_workers} workers without a sample"
        if self.tune is not None and batch % self.tune.workers:
            return f"cannot be dealt evenly to tune.workers = {self.tune.workers}"
        return None

    def override(self, values: dict[str, Any]) -> "Job":
        """This job with other values for dotted keys.

        Raises:
            UserError: naming the first value that is wrong.
        """
        data = self.model_dump()
        if "model.size" in values:
            data["model"] = {k: v for k, v in data["model"].items() if k not in SIZES["tiny"]}
        for name, value in values.items():
            set_key(data, name, value)
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
            UserError: if there is no such task, or the task does not support the model's family.
        """
        task = find_task(self.task)
        if self.model.family not in task.families:
            raise UserError(
                f"model.family = {self.model.family}: {self.task} is for "
                f"{' or '.join(task.families)}"
            )
        return task(self.data, self.tokenizer, self.model)


def _run_folder(data: dict[str, Any]) -> Folder:
    """The folder of a job's run, by values that are not checked yet."""
    return find_storage(str(data.get("storage", STORAGE)), Path.cwd()) / str(data.get("name", ""))


def _first_values(domain: Domain) -> dict[str, Any]:
    """Values for the keys in a domain's condition, under which the domain is tried."""
    conditions = (domain.when or {}).items()
    return {key: values[0] if isinstance(values, list) else values for key, values in conditions}
