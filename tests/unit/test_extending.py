"""The code in docs/extending.md works: a reader may copy it."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from starlette.testclient import TestClient

from orchestrator.data.config import DataConfig
from orchestrator.data.formats.registry import FORMATS, format_of
from orchestrator.data.kinds.registry import KINDS
from orchestrator.data.reading import BadRow
from orchestrator.data.rows import check_columns, read_rows
from orchestrator.data.sources import find_files
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.serve.app import make_app

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
HEADINGS = {"A source format": "records", "A kind of column": "years", "A serving engine": "count"}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the page, by the names that their files would have."""
    modules = {}
    for heading, name in HEADINGS.items():
        block = re.search(rf"## {heading}\n.*?```python\n(.*?)```", PAGE.read_text(), re.S)
        assert block is not None
        path = tmp_path / f"{name}.py"
        path.write_text(block[1])
        module = ModuleType(name)
        exec(compile(block[1], str(path), "exec"), module.__dict__)  # its types are in `module`
        monkeypatch.setitem(sys.modules, name, module)
        modules[name] = module
    monkeypatch.setitem(FORMATS, "records", modules["records"].RECORDS)
    monkeypatch.setitem(KINDS, "year", modules["years"].YEAR)
    return modules


def test_the_format_and_the_kind_read_a_folder(code: dict[str, ModuleType], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.rec").write_text("text=one\nwhen=2024-05-01\n\ntext=two\nwhen=1999\n")
    (folder / "b.records").write_text("text=three\nwhen=soon\n\nwhat is this\ntext=four\nwhen=\n")
    assert format_of("rec") is code["records"].RECORDS
    data = DataConfig(source=str(folder))
    reading = data.reading({"text": "text", "when": "year"}, (), lines=True)
    files = find_files(data, str(tmp_path / "runs")).files
    check_columns(files, reading)
    found = [row for file in files for row in read_rows(file, reading)]
    assert [row for row in found if isinstance(row, dict)] == [
        {"text": "one", "when": "2024"},
        {"text": "two", "when": "1999"},
        {"text": "four", "when": ""},
    ]
    reasons = [row.reason for row in found if isinstance(row, BadRow)]
    assert reasons == ["'when' is str without a year", "'what is this' is no key=value pair"]
    (folder / "a.rec").write_text("text=one\n")
    with pytest.raises(UserError, match=r"a\.rec: has no column 'when'"):
        check_columns(find_files(data, str(tmp_path / "runs")).files, reading)


def test_the_engine_answers(code: dict[str, ModuleType]) -> None:
    job = Job.model_validate(
        {"name": "a", "task": "language_modelling", "data": {"source": "python-stdlib"}}
    )
    trained = SimpleNamespace(processor=SimpleNamespace(encode=str.split))
    engine = code["count"].CountEngine(job, trained)
    with TestClient(make_app(job.name, engine)) as client:
        answer = client.post("/v1/count", json=engine.sample_request(job.build_task(), "to be"))
    assert engine.sample_answer(answer.json()) == "2 tokens"
