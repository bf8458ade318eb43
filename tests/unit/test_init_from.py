"""Beginning with weights that are there: their sizes, their tokenizer, a new head."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from orchestrator.errors import UserError
from orchestrator.job.fingerprint import fingerprint
from orchestrator.job.job import Job
from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.storage.folder import Folder

TEXTS = ["the cat and the hat", "a cat sat on the mat", "naïve 机器学习 🙂"] * 5
SIZES = {"num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 16}


def saved(folder: Path, rows: int = 0, **config: Any) -> Transformer:
    """A model in a folder with the tokenizer that it was trained with."""
    processor = TextProcessor.fit(TEXTS, TokenizerConfig(vocab_size=280))
    torch.manual_seed(0)
    sizes = ModelConfig.model_validate({**SIZES, **config})
    model = Transformer(sizes, processor.vocab_size + rows)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    pretrained.save(model, Folder(str(folder)))
    (folder / "tokenizer.json").write_bytes(processor.tokenizer_file())
    settings = json.dumps({"eos_token": processor.end})
    (folder / "tokenizer_config.json").write_text(settings)
    return model


def job(folder: Path, task: str = "language_modelling", **model: Any) -> Job:
    settings = {"init_from": str(folder), **model}
    return Job.model_validate(
        {"name": "a", "task": task, "data": {"source": "x"}, "model": settings}
    )


def test_a_job_takes_the_sizes_of_its_weights(tmp_path: Path) -> None:
    model = saved(tmp_path, num_kv_heads=1, d_ff=48)
    config = job(tmp_path, dropout=0.1).model
    assert (config.d_model, config.kv_heads, config.d_ff) == (32, 1, 48)
    assert (config.family, config.dropout) == ("decoder", 0.1)
    assert job(tmp_path, max_seq_len=16).model.max_seq_len == model.config.max_seq_len


def test_another_job_prepares_with_another_tokenizer(tmp_path: Path) -> None:
    saved(tmp_path)
    plain = {"name": "a", "task": "language_modelling", "data": {"source": "x"}, "model": SIZES}
    prints = {fingerprint(j, "prepare") for j in (job(tmp_path), Job.model_validate(plain))}
    assert len(prints) == 2


def test_a_key_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValidationError, match=r"model.d_model = 64: model.init_from has 32"):
        job(tmp_path, d_model=64)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"model.init_from: .*has no config.json"):
        job(tmp_path / "nowhere")


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match=r"model.family = decoder: text_classification is for"):
        job(tmp_path, "text_classification").build_task()


@pytest.mark.parametrize("rows", [0, 24])
def test_the_tokenizer_has_architecture_and_all_rows_of_the_embedding_are_kept(
    rows: int, tmp_path: Path
) -> None:
    model = saved(tmp_path, rows)
    task = job(tmp_path).build_task()
    fitted = task.fit_processor({"text": text} for text in ["something else"])
    processor = task.load_processor(fitted.to_bytes())
    assert processor.vocab_size == model.vocab_size
    assert processor.encode("the cat") == TextProcessor.fit(
        TEXTS, TokenizerConfig(vocab_size=280)
    ).encode("the cat")
    mine = task.build_model(processor.vocab_size, 1)
    assert pretrained.load(mine, Folder(str(tmp_path))) == []
    tokens = torch.tensor([processor.encode("the cat")])
    torch.testing.assert_close(mine(tokens), model(tokens))


def test_a_classifier_begins_with_what_another_head_has_learned(tmp_path: Path) -> None:
    model = saved(tmp_path, family="encoder")
    task = job(tmp_path, "text_classification").build_task()
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(TEXTS)]
    processor = task.fit_processor(rows)
    mine = task.build_model(processor.vocab_size, processor.num_outputs)
    new = pretrained.load(mine, Folder(str(tmp_path)))
    assert new and all(name.startswith("head.") for name in new)
    assert model.encoder is not None and mine.encoder is not None
    ours = mine.encoder.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in model.encoder.state_dict().items())


def test_a_tokenizer_that_puts_tokens_around_a_text_does_so_here_too(tmp_path: Path) -> None:
    saved(tmp_path, family="encoder")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=12)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"sep_token": "[SEP]"}))

    config = job(tmp_path, "text_classification").model
    processor = pretrained.fit_text([], TokenizerConfig(), config)

    again = TextProcessor.from_bytes(processor.to_bytes())
    assert again.encode("the dog cat") == [1, 4, 3, 5, 2] and again.end_token == 2
    assert again.token_bytes[:6].tolist() == [0, 0, 0, 0, 3, 3]


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<stop>"}))
    with pytest.raises(UserError, match=r"tokenizer.json: the tokenizer has no <stop> token"):
        pretrained.fit_text([], TokenizerConfig(), job(tmp_path).model)


def test_what_a_masked_model_learned_and_its_tokenizer_begin_a_classifier(tmp_path: Path) -> None:
    settings = {"name": "a", "task": "masked_language_modelling", "data": {"source": "x"}}
    masked = Job.model_validate({**settings, "model": SIZES}).build_task()
    processor = masked.fit_processor({"text": text} for text in TEXTS)
    model = masked.build_model(processor.vocab_size, 1)
    ids = {"eos_token_id": processor.end_token, "mask_token_id": processor.mask_token}
    pretrained.save(model, Folder(str(tmp_path)), **ids)
    (tmp_path / "tokenizer.json").write_bytes(processor.tokenizer_file())

    task = job(tmp_path, "text_classification").build_task()
    fitted = task.fit_processor({"text": text, "label": "a"} for text in TEXTS)
    assert fitted.text.mask == "<|mask|>" and fitted.vocab_size == processor.vocab_size
    classifier = task.build_model(fitted.vocab_size, fitted.num_outputs)
    assert all(n.startswith("head.") for n in pretrained.load(classifier, Folder(str(tmp_path))))


def test_a_masked_model_needs_a_tokenizer_that_can_hide(tmp_path: Path) -> None:
    saved(tmp_path, family="encoder")
    task = job(tmp_path, "masked_language_modelling").build_task()
    with pytest.raises(UserError, match="has no mask token"):
        task.fit_processor([])


@pytest.mark.parametrize("given", ["{name}", "./{name}", "../{parent}/{name}", "file://{whole}"])
def test_the_place_of_weights_is_absolute_from_where_the_job_is_read(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    place = given.format(name="model", parent=tmp_path.name, whole=tmp_path / "model")
    read = job(Path(place) if "//" not in place else place)  # type: ignore[arg-type]
    monkeypatch.chdir("/")
    found = read.model.init_from
    assert found is not None and Path(found).is_absolute() and Path(found, "config.json").exists()
    assert read.override({"train.lr": 0.5}).model == read.model


def test_a_home_folder_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert job(Path("~/model")).model.init_from == str(tmp_path / "model")


def test_a_shorter_context_than_the_weights_is_allowed_and_a_longer_one_is_not(
    tmp_path: Path,
) -> None:
    saved(tmp_path)
    shorter = job(tmp_path, max_seq_len=8)
    assert shorter.model.max_seq_len == 8
    assert shorter.override({"train.lr": 0.5}).model.max_seq_len == 8
    with pytest.raises(ValidationError, match=r"max_seq_len = 32: model.init_from has 16"):
        job(tmp_path, max_seq_len=32)


STAGES_OF = {  # what is done anew where a file is another
    "model.safetensors": {"tune", "train"},
    "tokenizer.json": {"prepare", "tune", "train"},
    "tokenizer_config.json": {"prepare", "tune", "train"},
    "README.md": set(),
}


@pytest.mark.parametrize("name", STAGES_OF)
def test_what_is_replaced_in_the_folder_is_read_anew(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / name
    path.touch()
    before = job(tmp_path)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = job(tmp_path)
    stages = ("prepare", "tune", "train", "evaluate")
    changed = {s for s in stages if fingerprint(before, s) != fingerprint(after, s)}
    assert changed == STAGES_OF[name]
    copied = pickle.loads(pickle.dumps(before))
    assert fingerprint(copied, "train") == fingerprint(before, "train")


TASK = """
from orchestrator.tasks.text_classification import TextClassification
from {base} import Base

class Mine(Base, TextClassification):
    pass
"""


def test_a_task_of_the_user_s_that_is_changed_is_done_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_base_of_task.py").write_text("class Base:\n    pass\n")
    (tmp_path / "my_own_task.py").write_text(TASK.format(base="my_base_of_task"))
    given = {"name": "a", "task": "my_own_task:Mine", "data": {"source": "x"}, "model": SIZES}
    whole = Job.model_validate({**given, "model": {**SIZES, "family": "encoder"}})
    stages = ("prepare", "tune", "train", "evaluate")
    seen = {tuple(fingerprint(whole, stage) for stage in stages)}
    for name in ("my_own_task.py", "my_base_of_task.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        found = tuple(fingerprint(whole, stage) for stage in stages)
        assert all(a != b for before in seen for a, b in zip(before, found, strict=True))
        seen.add(found)
