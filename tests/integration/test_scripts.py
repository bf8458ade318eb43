"""Text of many scripts stays the same, byte for byte, from the file to the client."""

import json
from pathlib import Path

import httpx
import yaml
from ray import serve

from orchestrator.cluster.connection import Cluster
from orchestrator.data.shards import ShardReader
from orchestrator.job.file import load_job
from orchestrator.run import Run
from orchestrator.serve.deploy import deploy
from orchestrator.serve.history import History
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.sequence_to_sequence import decode_column
from tests.integration.conftest import Silent, orchestrate, stages
from tests.ray_head import Head, free_port

ANSWERS = [
    "机器学习,很有趣。",
    "繁體字「引號」",
    "مرحبا بالعالم",
    "שלום, עולם!",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "naïve café",
    "ひらがなとカタカナ",
    "नमस्ते दुनिया",
]


def test_answers_of_every_script_reach_the_client(
    tmp_path: Path, head: Head, connected: Cluster
) -> None:
    """A job with only task and data memorises a few answers, and the endpoint returns them."""
    rows = [
        {"question": f"{number}: {answer[:2]}?", "answer": answer}
        for number, answer in enumerate(ANSWERS)
    ]
    for split in ("train", "validation", "test"):
        lines = (json.dumps(row, ensure_ascii=split == "test") + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    data = {"source": str(tmp_path / "train.jsonl")}
    data |= {f"{s}_source": str(tmp_path / f"{s}.jsonl") for s in ("validation", "test")}
    content = {"name": "scripts", "task": "question_answering", "data": data}
    content |= {"train": {"steps": 120}, "serve": {"port": free_port(), "route_prefix": "/scripts"}}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**content, "storage": str(tmp_path / "runs")}))
    done = orchestrate("run", job, "--until", "evaluate", environment=head.environment)
    assert done.returncode == 0, done.stdout + done.stderr

    results = stages(job, head.environment)
    report = json.loads((Path(results["evaluate"]["path"]) / "report.json").read_text())
    assert report["metrics"]["exact_match"] == 1.0
    prepared = PreparedData.load(Folder(results["prepare"]["path"]))
    assert prepared is not None
    run = Run(load_job(str(job)))
    processor = run.job.build_task().load_processor(prepared.folder.read(prepared.processor))
    test = ShardReader(prepared, "test").read(range(len(ANSWERS)))
    assert sorted(decode_column(test, "target", processor)) == sorted(ANSWERS)

    finished = run.finished(run.job)
    assert finished is not None
    deployed = deploy(run.job, *finished, History(run.folder), Silent())
    url = deployed.address.url
    asked = [{"question": row["question"]} for row in rows]
    answer = httpx.post(f"{url}/v1/predict", json={"inputs": asked}, timeout=60)
    serve.delete("scripts")  # frees its core for other tests
    assert [one["answer"] for one in answer.json()["outputs"]] == ANSWERS
    assert ANSWERS[0].encode() in answer.content
