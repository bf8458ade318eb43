"""The task in docs/adding_a_task.md is one: a reader may copy it."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.infer.batch import to_device
from orchestrator.job.job import Job
from orchestrator.job.sections import TrainConfig
from orchestrator.learn.optimizer import build_optimizers
from orchestrator.learn.world import World
from orchestrator.tasks.task import Task

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_task.md"
ROWS = [
    {"text": "goals and votes", "tags": "sport|politics"},
    {"text": "goals and goals", "tags": "sport"},
    {"text": "votes and votes", "tags": "politics"},
]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task[Any]:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    (tmp_path / "my_tasks.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    settings = {
        "name": "articles",
        "task": "my_tasks:TextTags",
        "data": {"source": "x"},
        "tokenizer": {"vocab_size": 300},
        "model": {"num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 32},
    }
    job = Job.model_validate(settings)
    assert job.model.family == "encoder"
    return job.build_task()


def test_it_learns_and_answers(task: Task[Any]) -> None:
    rows = [row for each in ROWS if (row := task.clean(each)) is not None]
    fitted = task.fit_processor(rows)
    processor = task.load_processor(fitted.to_bytes())
    batch = to_device(task.encode(rows, processor), torch.device("cpu"))
    torch.manual_seed(0)
    model = task.build_model(processor.vocab_size, processor.num_outputs)
    config = TrainConfig(lr=0.02, weight_decay=0.0)
    optimizers = build_optimizers(model, config, World())
    for _ in range(100):
        loss, count = task.loss(model, batch)
        (loss / count).backward()
        for optimizer in optimizers:
            optimizer.step(config.lr, torch.tensor(True))
        model.zero_grad()
    with torch.inference_mode():
        found = task.predict(model.eval(), batch, processor)
        assert task.score(found)["f1"] == 1
        asked = task.clean({"text": "goals and goals", "tags": "?"})
        answers = task.predict(
            model, to_device(task.encode([asked], processor), torch.device("cpu")), processor
        )
    assert task.reply(answers, 0, processor) == {"tags": ["sport"]}
