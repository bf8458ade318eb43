"""The `train:`, `serve:` and `cluster:` sections of a job.

`data:` is in `data/config.py`, `tokenizer:` in `processors/text.py`, `model:` in `model/config.py`,
`tune:` in `job/search_space.py`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.job.request_log import RequestLogConfig
from orchestrator.job.strict_section import Share, StrictSection

Decay = Annotated[float, Field(ge=0, lt=1)]
Replicas = Annotated[int, Field(ge=1)]


def _ordered(count: int | tuple[int, int]) -> int | tuple[int, int]:
    if isinstance(count, tuple) and count[0] > count[1]:
        raise ValueError("the fewest come first")
    return count


class TrainConfig(StrictSection):
    """The `train:` section of a job."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; or give minutes")
    minutes: float | None = Field(
        None, gt=0, description="time budget; the steps that fit are measured, then fixed"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="passes over the training split after which the time budget ends early",
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
    min_lr_ratio: float = Field(
        0.0, ge=0, le=1, description="last rate of the cosine, as a share of lr"
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="AdamW's moment decays")
    weight_decay: float = Field(0.1, ge=0, description="of the matrices inside the blocks")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: the one that is measured to be faster for this model",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the weights and of the sample order")
    deterministic: bool = Field(
        False, description="the same bits for any number of workers; costs memory and traffic"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile; auto: if it saves more time than it takes, by the plan"
    )
    spike_sigmas: float = Field(
        6.0,
        ge=0,
        description="skip a step whose loss is so many usual spreads too high; 0: never",
    )
    eval_every: int | None = Field(
        None,
        ge=1,
        description="steps between validations, each with a checkpoint; default: a tenth of all",
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between further checkpoints: the most that a failure loses"
    )
    eval_rows: int = Field(128, ge=1, description="samples of each validation")
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
        """The time budget if `steps` is not given."""
        return self.minutes if self.minutes is not None else 5.0


class VllmConfig(StrictSection):
    """vLLM, of which Ray Serve's own deployment for language models takes care."""

    runtime_env: dict[str, Any] = Field(
        min_length=1,
        description="Ray's runtime_env in which vLLM is installed: "
        "{py_executable: /opt/vllm/bin/python}, or {pip: ['ray[serve,llm]==VERSION']}, which "
        "installs it",
    )
    engine_kwargs: dict[str, Any] = Field({}, description="arguments of vLLM's engine")


class ServeConfig(StrictSection):
    """The `serve:` section of a job."""

    replicas: Replicas | tuple[Annotated[int, Field(ge=0)], Replicas] = Field(
        1,
        description="copies of the model; or [fewest, most], by how much is asked; fewest may be 0",
    )
    gpus_per_replica: float | None = Field(
        None, ge=0, le=1, description="GPUs of each; default: cluster.gpus_per_worker"
    )
    host: str = Field("127.0.0.1", description="address that the endpoint listens on")
    port: int = Field(8000, ge=1, le=65_535, description="port that the endpoint listens on")
    route_prefix: str = Field("/", pattern=r"^/[A-Za-z0-9_./-]*$", description="path before /v1")
    max_tokens: int = Field(64, ge=1, description="tokens to generate if a request does not say")
    keys: str | None = Field(
        None,
        min_length=1,
        description="file of API keys, a SHA-256 a line: all routes but health and the page then "
        "need a key; a relative path starts at the working directory",
    )
    open: bool = Field(
        False, description="let anybody who reaches a host other than this machine ask, without key"
    )
    slots: int = Field(
        16, ge=1, description="texts that a replica generates at once; each slot takes memory"
    )
    weights: Literal["fp32", "int8"] = Field(
        "fp32",
        description="int8: generate text on a CPU with weights of 8 bits, in less time and memory",
    )
    engine: Literal["own", "vllm"] = Field(
        "own", description="vllm: Ray Serve's deployment of vLLM serves a decoder's export"
    )
    vllm: VllmConfig | None = Field(None, description="for serve.engine: vllm")
    log: RequestLogConfig | None = Field(
        None, description="keep a sample of the requests and their answers; default: none"
    )
    max_queued_requests: int = Field(
        64, ge=1, description="more waiting requests than this get 429, in each replica"
    )
    deadline_seconds: float = Field(
        300.0, gt=0, description="a request that is not answered by then gets 504"
    )
    sample_prompt: str = Field("The", description="prompt of the sample at the end of a run")
    gate: Share = Field(
        0.02,
        description="a new version is refused if its metric on the test split is worse than the "
        "served one's by a larger part of it",
    )
    canary: Share = Field(
        0.1, description="requests that a new version answers first, as a share: 10%; 0: none"
    )
    shadow: Share = Field(
        0.0,
        description="requests that are copied to a new version before it answers any, as a share",
    )
    canary_requests: int = Field(
        100, ge=1, description="answers of a new version that are compared with the served one's"
    )
    canary_seconds: float = Field(
        60.0, ge=0, description="a new version with fewer answers by then is judged by those"
    )

    @field_validator("replicas")
    @classmethod
    def _fewest_first(cls, replicas: int | tuple[int, int]) -> int | tuple[int, int]:
        return _ordered(replicas)

    @property
    def replica_range(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas

    @property
    def first_replicas(self) -> int:
        """How many replicas a deployment starts with: one at least, to be tested."""
        return max(self.replica_range[0], 1)


Workers = Annotated[int, Field(ge=1)]


class ClusterConfig(StrictSection):
    """The `cluster:` section of a job."""

    workers: Workers | tuple[Workers, Workers] = Field(
        1,
        description="training processes; or [fewest, most], as many as the cluster has room for",
    )
    cpus_per_worker: int = Field(1, ge=1, description="cores, and so threads, of each")
    gpus_per_worker: float = Field(
        0, ge=0, description="GPUs of each: 0 or 1, or a part of one for a single worker"
    )
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
        return _ordered(workers)

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_gpu(cls, gpus: float) -> float:
        if gpus > 1:
            raise ValueError("a worker computes on one GPU: give it 1, and have more workers")
        return gpus

    @model_validator(mode="after")
    def _gpus_are_not_shared(self) -> Self:
        if 0 < self.gpus_per_worker < 1 and self.most_workers > 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g} with {self.most_workers} workers: "
                "NCCL connects no two workers on one GPU; give each 1, or have one worker"
            )
        return self

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
