"""A predicting task through the command line, and its export to Hugging Face's libraries."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from orchestrator.processors.text import TextProcessor
from tests.integration.conftest import WORDS, orchestrate, stages, write_job
from tests.ray_head import Head


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    """A finished run on a csv file of sentences with "good" or "bad", with a separate test file."""
    folder = tmp_path_factory.mktemp("tasks")
    chance = random.Random(0)
    for name, count in (("train", 300), ("test", 41)):
        lines = ["review,stars"]
        for i in range(count):
            words = [chance.choice(WORDS) for _ in range(6)]
            words.insert(chance.randrange(6), ("bad", "good")[i % 2])
            lines.append(f"{' '.join(words)},{(1, 5)[i % 2]}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    data = {
        "source": str(folder / "train.csv"),
        "test_source": str(folder / "test.csv"),
        "columns": {"text": "review", "label": "stars"},
    }
    train = {"steps": 60, "global_batch_size": 16, "warmup_steps": 5, "lr": 0.01}
    job = write_job(folder, task="text_classification", data=data, train=train)
    done = orchestrate("run", job, "--until", "evaluate", environment=head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return job


def test_a_classifier_learns_and_is_tested_on_all_of_its_test_file(
    finished: Path, head: Head
) -> None:
    folder = Path(stages(finished, head.environment)["evaluate"]["path"])
    report = json.loads((folder / "report.json").read_text())
    assert report["samples"]["test"] == 41
    assert report["metrics"]["accuracy"] > 0.9 > report["baselines"]["commonest label"]["accuracy"]
    assert set(report["baselines"]) == {"commonest label", "naive Bayes"}


def test_an_export_predicts_the_same(finished: Path, head: Head, tmp_path: Path) -> None:
    done = orchestrate("export", finished, str(tmp_path), environment=head.environment)
    assert done.returncode == 0, done.stderr
    assert "AutoModelForSequenceClassification" in done.stdout
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    asked = ["the and good of to a in", "he was for bad as on be"]
    batch = tokenizer(asked, padding=True, return_tensors="pt")
    ours = TextProcessor.from_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert tokenizer(asked)["input_ids"] == ours.encode_batch(asked)
    assert ours.encode("good") == ours.encode(" good")
    with torch.no_grad():
        labels = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1)
    assert [model.config.id2label[label] for label in labels.tolist()] == ["5", "1"]
    assert "accuracy" in (tmp_path / "README.md").read_text()
    left = Path(stages(finished, head.environment)["train"]["path"]) / "export"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (left / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.columns.label=rating", "has no column 'rating'"),
        ("data.columns.stars=label", "data.columns.stars: is no column of this task"),
        ("model.family=decoder", "model.family = decoder: text_classification is for encoder"),
        ("data.test_source=nowhere.csv", "data.test_source = nowhere.csv: no such file"),
    ],
)
def test_an_error_is_one_line(finished: Path, head: Head, override: str, message: str) -> None:
    overrides = [override, "name=other"]
    done = orchestrate("train", finished, *overrides, environment=head.environment)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_an_export_starts_another_training(finished: Path, head: Head, tmp_path: Path) -> None:
    orchestrate("export", finished, str(tmp_path), environment=head.environment)
    content = yaml.safe_load(finished.read_text())
    content |= {"name": "again", "model": {"init_from": str(tmp_path)}}
    content["train"] |= {"steps": 2, "lr": 1e-6}
    (job := tmp_path / "again.yaml").write_text(yaml.safe_dump(content))
    done = orchestrate("run", job, "--until", "evaluate", environment=head.environment)
    assert done.returncode == 0, done.stderr
    folder = Path(stages(job, head.environment)["evaluate"]["path"])
    assert json.loads((folder / "report.json").read_text())["metrics"]["accuracy"] > 0.9


def test_a_model_without_an_architecture_starts_another_training_too(
    finished: Path, head: Head, tmp_path: Path
) -> None:
    content = yaml.safe_load(finished.read_text())
    content |= {"name": "own", "model": {**content.get("model", {}), "activation": "gelu"}}
    content["train"] |= {"steps": 2, "lr": 1e-6}
    (own := tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    assert orchestrate("train", own, environment=head.environment).returncode == 0
    left = Path(stages(own, head.environment)["train"]["path"]) / "export"

    refused = orchestrate("export", own, str(tmp_path / "model"), environment=head.environment)

    error = " ".join(refused.stderr.split())
    assert refused.returncode == 2 and "Traceback" not in error
    assert "no architecture of Hugging Face's" in error and "activation = gelu" in error
    assert f"model.init_from: {left}".replace(" ", "") in error.replace(" ", "")
    assert not (tmp_path / "model").exists()
    assert "init_from" in (left / "README.md").read_text()
    content |= {"name": "again-own", "model": {"init_from": str(left)}}
    (again := tmp_path / "again.yaml").write_text(yaml.safe_dump(content))
    done = orchestrate("train", again, environment=head.environment)
    assert done.returncode == 0, done.stderr


def test_an_unfinished_training_cannot_be_exported(
    finished: Path, head: Head, tmp_path: Path
) -> None:
    done = orchestrate("export", finished, str(tmp_path), "name=x", environment=head.environment)
    assert done.returncode == 2 and "holds no finished training" in done.stderr
