"""What was served when, from what: a file a deployment, in the folder `served/` of a run.

A file is written before its version is loaded, and again with the outcome. So a version that runs
always has one, from which it can be deployed again.
"""

import json
import re
import subprocess
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from orchestrator import __version__
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.storage.folder import Folder

FOLDER = "served"
SECONDS = 5.0  # for git to answer

Outcome = Literal["trying", "serving", "refused"]


class Deployment(BaseModel):
    """One deployment of one version."""

    number: int = Field(ge=1)
    version: str = Field(
        pattern=r"^[0-9a-f]{12}$", description="hash of all that its answers are of"
    )
    action: Literal["deployed", "updated", "rolled back"]
    outcome: Outcome
    reason: str = Field("", description="why it was refused")
    started: datetime
    ended: datetime | None = Field(None, description="when the outcome was known")
    prepared: str = Field(description="URI of the prepared data")
    training: str = Field(description="URI of the training")
    checkpoint: str = Field(description="name of the checkpoint in it")
    metric: str = Field("", description="that the gate compares")
    metrics: dict[str, float] = Field({}, description="of the test split")
    source: str = Field(description="of the data, as the job names it")
    commit: str = Field("", description="of the working directory, if git tracks it")
    software: str = __version__
    figures: dict[str, float] = Field({}, description="of both versions, while it was tried")
    job: dict[str, Any] = Field(description="all settings, with the sweep's best values")

    def settings(self) -> Job:
        """Raises UserError if the settings are of another release of this package."""
        try:
            return Job.model_validate(self.job)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(
                f"deployment {self.number} cannot be read by this release: {key}: {first['msg']}"
            ) from None


class History:
    """The deployments of a run, in their order."""

    def __init__(self, run: Folder) -> None:
        self.folder = run / FOLDER

    def read(self) -> list[Deployment]:
        """Raises UserError if a file is damaged."""
        names = sorted(name for name in self.folder.names() if re.fullmatch(r"\d{6}\.json", name))
        deployments = []
        for name in names:
            try:
                content = json.loads(self.folder.read(name))
                deployments.append(Deployment.model_validate(content))
            except (ValueError, RecursionError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{self.folder}/{name} is damaged ({reason}): delete it") from None
        return deployments

    def write(self, deployment: Deployment) -> None:
        content = deployment.model_dump_json(indent=1).encode()
        self.folder.write(f"{deployment.number:06}.json", content)

    def of(self, version: str) -> Deployment | None:
        """The last deployment of a version."""
        return next((each for each in reversed(self.read()) if each.version == version), None)

    def before(self, version: str) -> Deployment | None:
        """The last version that served before this one did, and that nobody rolled back."""
        stack: list[Deployment] = []
        for each in self.read():
            if each.outcome != "serving":
                continue
            if each.action == "rolled back":
                while stack and stack[-1].version != each.version:
                    stack.pop()
            if not stack or stack[-1].version != each.version:
                stack.append(each)
        while stack and stack[-1].version != version:
            stack.pop()
        return stack[-2] if len(stack) > 1 else None


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def commit_here() -> str:
    """The commit of the working directory, with "+" if files differ from it; empty without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    return done.stdout.strip()
