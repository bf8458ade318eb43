"""Artifacts: the folders that stages write. An artifact's manifest is written last.

A folder without a manifest is no artifact: a killed stage left it. The stage, when it is run again,
reuses the parts that it can verify.
"""

import hashlib
import json
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    computed_field,
    model_validator,
)

from orchestrator.errors import StageError
from orchestrator.storage.folder import MANIFEST, Folder

Split = Literal["train", "validation", "test"]
Precision = Literal["fp32", "bf16"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FINDINGS = "report.md"  # the report of a sweep
ATTEMPT = "attempt"  # the id of the start of a training that may write checkpoints

# A manifest names files of its own folder and nothing else: no `/`, no `..`, no absolute path.
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]  # names a copy
RelativePath = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]

# A sweep's best values go into the job: only keys that can be swept, no task, no storage.
SweptKey = Annotated[str, Field(pattern=r"^(train|model)\.\w+$")]


class Shard(BaseModel):
    """One file of prepared rows."""

    model_config = ConfigDict(frozen=True)

    name: FileName
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: Digest


class Artifact(BaseModel):
    """A finished stage's manifest. `folder` is its place and not part of the file."""

    model_config = ConfigDict(
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",  # valid JSON, and read back as numbers
    )

    stage: ClassVar[str]

    folder: Folder = Field(exclude=True)
    seconds: float
    summary: str = Field(description="one line for the table at the end of a run")
    notices: list[str] = Field([], description="what its user should know of it, a line each")

    def commit(self) -> Self:
        """Write the manifest. From now on the artifact exists."""
        self.folder.write(MANIFEST, self.model_dump_json(indent=1).encode())
        return self

    @classmethod
    def load(cls, folder: Folder) -> Self | None:
        """The artifact in this folder, or None if no stage has finished one.

        Raises:
            StageError: if there is a manifest that cannot be read.
        """
        try:
            content = folder.read(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return cls.model_validate({**json.loads(content), "folder": folder})
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise StageError(
                f"{folder}/{MANIFEST} is damaged ({reason}): delete that folder and run again"
            ) from error

    @classmethod
    def load_required(cls, folder: Folder) -> Self:
        """The artifact in this folder, which another process has finished.

        Raises:
            StageError: if it is missing or damaged.
        """
        artifact = cls.load(folder)
        if artifact is None:
            raise StageError(f"{folder}: is gone, or on no storage that all machines share")
        return artifact


class PreparedData(Artifact):
    """Encoded, shuffled shards of every split, with the processor that encoded them."""

    stage: ClassVar[str] = "prepare"

    processor: FileName = Field(description="file of the tokenizer, or whatever encoded the data")
    splits: dict[Split, list[Shard]]
    documents: dict[str, int] = Field(description="kept, empty, duplicate and quarantined ones")
    source_bytes: int

    def rows(self, split: Split) -> int:
        return sum(shard.rows for shard in self.splits[split])


class Sweep(Artifact):
    """A finished sweep: its best trial."""

    stage: ClassVar[str] = "tune"

    best: dict[SweptKey, Any] = Field(description="overrides of the best trial")
    best_trial: int = Field(description="its number")
    trials: list[dict[str, Any]] = Field(description="without their curves: `trials.py`")


class Checkpoint(Artifact):
    """A model and the state of its optimizers after `step` steps."""

    stage: ClassVar[str] = "train"

    step: int = Field(ge=0)
    total_steps: int | None = Field(description="None: a time budget not yet turned into steps")
    metrics: dict[str, float] = Field(description="of the validation at this step, else empty")
    history: list[dict[str, float]] = Field(description="the learning curve up to this step")
    precision: Precision = Field(description="that it is trained in, which a resumed run keeps")
    samples: str = Field(description="digest of the row numbers of all steps, in their order")
    made_by: dict[str, Any] = Field(description="what must not change for it to be continued")
    files: dict[FileName, str] = Field(description="SHA-256 of each file")
    sizes: dict[FileName, int] = Field(description="bytes of each file")

    @computed_field(description="SHA-256 of all the rest of this manifest")  # type: ignore[prop-decorator]
    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"digest"}).encode()).hexdigest()

    @model_validator(mode="wrap")
    @classmethod
    def _is_as_written(cls, content: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        checkpoint = build(content)
        written = content.get("digest") if isinstance(content, dict) else None
        if written not in (None, checkpoint.digest):
            raise ValueError("its digest is not that of its content")
        return checkpoint


def has_checkpoint(training: Folder) -> bool:
    """Whether the training in this folder, finished or not, has a checkpoint to continue from."""
    steps = training / "checkpoints"
    return any(
        re.fullmatch(r"step-\d+", name) and (steps / name).exists(MANIFEST)
        for name in reversed(steps.names())
    )


class Training(Artifact):
    """A finished training: its best checkpoint, and the metric that selected it."""

    stage: ClassVar[str] = "train"

    best_checkpoint: RelativePath
    steps: int
    metrics: dict[str, float]
    history: list[dict[str, float]]
    precision: Precision = Field(description="that it was trained in, and is used in")

    @property
    def exported(self) -> Folder:
        """The folder of the exported model, for `model.init_from` of other jobs."""
        return self.folder / "export"

    def checkpoint(self) -> Checkpoint:
        """The best checkpoint. Raises StageError if it has been deleted."""
        checkpoint = Checkpoint.load(self.folder / self.best_checkpoint)
        if checkpoint is None:
            raise StageError(
                f"{self.folder}/{self.best_checkpoint} is gone: delete {self.folder} and run again"
            )
        return checkpoint


class Evaluation(Artifact):
    """Metrics of the test split, of the model and of simple baselines."""

    stage: ClassVar[str] = "evaluate"

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    counted: str = ""  # the signatures of metrics that have one
