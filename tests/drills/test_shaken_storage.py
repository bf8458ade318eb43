"""A job on S3 while requests keep failing ends as one that nothing disturbs."""

import json
from pathlib import Path

import pytest

from orchestrator.storage.folder import MANIFEST, Folder
from tests.drills.s3 import Storage
from tests.integration.conftest import orchestrate, stages
from tests.integration.test_s3 import listing, s3, s3_head, source, write
from tests.ray_head import Head

__all__ = ["s3", "s3_head", "source"]
pytestmark = pytest.mark.timeout(500)


def test_a_job_whose_requests_keep_failing_ends_with_the_same_content(
    s3: Storage, s3_head: Head, source: str, tmp_path: Path
) -> None:
    trained = []
    for name, every in (("calm", 0), ("shaken", 9)):
        job = write(tmp_path, name, source)
        s3.every = every
        done = orchestrate(
            "run", job, "--until", "evaluate", environment=s3_head.environment, timeout=400
        )
        s3.heal()
        assert done.returncode == 0, done.stdout + done.stderr
        results = stages(job, s3_head.environment)
        shards = json.loads(Folder(results["prepare"]["path"]).read(MANIFEST))["splits"]
        train = Folder(results["train"]["path"])
        best = json.loads(train.read(MANIFEST))["best_checkpoint"]
        files = json.loads((train / best).read(MANIFEST))["files"]
        trained.append((shards, best, files))
    assert trained[0] == trained[1]
    folders = {name.rsplit("/", 1)[0] for name in listing("shaken") if "/step-" in name}
    assert all((Folder("s3://drill/runs/shaken") / name).exists(MANIFEST) for name in folders)
