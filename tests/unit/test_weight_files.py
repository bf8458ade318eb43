"""Folders of weights that are not whole, or not what they seem: told before anything runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer

from orchestrator.cli import main
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.model.hf import Outputs
from orchestrator.pretrained import model as pretrained
from orchestrator.processors.text import MASK, TextProcessor, TokenizerConfig
from orchestrator.storage.folder import Folder

TEXTS = ["the cat and the hat", "a cat sat on the mat"] * 5
INDEX, FIRST = "model.safetensors.index.json", "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in three shards, as transformers writes them, with a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    processor = TextProcessor.fit(TEXTS, TokenizerConfig(vocab_size=280))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=processor.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size=40_000)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 2
    (folder / "tokenizer.json").write_bytes(processor.tokenizer_file())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": processor.end}))
    return folder


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    place = tmp_path / "model"
    shutil.copytree(llama, place)
    return place


def job_of(folder: Path, task: str = "language_modelling", **model: Any) -> Job:
    settings = {"name": "a", "task": task, "data": {"source": "x"}}
    return Job.model_validate({**settings, "model": {"init_from": str(folder), **model}})


def check(folder: Path, task: str = "language_modelling") -> None:
    job = job_of(folder, task)
    built = job.build_task()
    pretrained.check(job.model, built.build_model, Outputs.of(built, None))


def first(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def in_one_file(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any] = len) -> None:
    """All weights in model.safetensors, changed."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= safetensors.torch.load_file(path)
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def test_a_whole_folder_is_taken(folder: Path) -> None:
    check(folder)
    in_one_file(folder)
    check(folder)


def damage_index(folder: Path, **values: Any) -> None:
    change_json(folder / INDEX, weight_map=values)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is gone": (lambda f: first(f).unlink(), "00001-of"),
    "a shard is cut off": (
        lambda f: write(first(f), first(f).read_bytes()[:-7]),
        r"00001-of-.*is cut off",
    ),
    "a shard is cut off within its header": (
        lambda f: write(first(f), first(f).read_bytes()[:50]),
        r"00001-of-.*is cut off",
    ),
    "a shard is longer": (
        lambda f: write(first(f), first(f).read_bytes() + b"more"),
        r"00001-of-.*is too long",
    ),
    "a shard is empty": (lambda f: write(first(f), b""), r"00001-of-.*not a safetensors file"),
    "a shard is a page of HTML": (
        lambda f: write(first(f), b"<!doctype html><html>not found</html>" * 9),
        r"00001-of-.*not a safetensors file",
    ),
    "a shard is a pointer of git lfs": (
        lambda f: write(first(f), b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"00001-of-.*git lfs",
    ),
    "a shard's header is no JSON": (
        lambda f: write(first(f), (30).to_bytes(8, "little") + b"x" * 30),
        r"00001-of-.*header cannot be read",
    ),
    "the index is cut off": (
        lambda f: write(f / INDEX, (f / INDEX).read_bytes()[:60]),
        r"index\.json is no JSON",
    ),
    "the index is a list": (lambda f: write(f / INDEX, b"[]"), r"index\.json is no JSON object"),
    "the index is of another kind": (lambda f: write(f / INDEX, b"{}"), r"index.*no weight_map"),
    "the index leads out": (
        lambda f: damage_index(f, a="../model.safetensors"),
        r"index.*'\.\./model\.safetensors' is not a plain file name",
    ),
    "the index leads elsewhere": (
        lambda f: damage_index(f, a="/etc/passwd"),
        r"index.*'/etc/passwd' is not a plain file name",
    ),
    "the index names a number": (
        lambda f: damage_index(f, a=3),
        r"index.*3 is not a plain file name",
    ),
    "the index names something pickled": (
        lambda f: damage_index(f, a="pytorch_model.bin"),
        r"index.*not a safetensors file",
    ),
    "the index promises more": (
        lambda f: damage_index(f, nothing=first(f).name),
        r"00001-of-.*has no tensor nothing",
    ),
    "the index is gone": (lambda f: (f / INDEX).unlink(), r"no model\.safetensors\.index\.json"),
    "a weight is gone": (
        lambda f: in_one_file(f, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight is missing",
    ),
    "its own head is gone": (
        lambda f: in_one_file(f, lambda w: w.pop("lm_head.weight")),
        r"lm_head\.weight is missing",
    ),
    "a weight lies on its side": (
        lambda f: in_one_file(
            f, lambda w: w.update({(n := "model.layers.0.mlp.up_proj.weight"): w[n].T.contiguous()})
        ),
        r"up_proj\.weight has the shape \[32, 48\]",
    ),
    "weights are of eight bits": (
        lambda f: in_one_file(
            f, lambda w: w.update({(n := "lm_head.weight"): w[n].to(torch.int8)})
        ),
        r"lm_head\.weight is I8: quantised",
    ),
    "the tokenizer is gone": (
        lambda f: (f / "tokenizer.json").rename(f / "x"),
        r"has no tokenizer\.json: without it the model cannot read text",
    ),
    "the tokenizer is in parts": (
        lambda f: (f / "tokenizer.json").rename(f / "spiece.model"),
        r"only spiece\.model.*AutoTokenizer\.from_pretrained",
    ),
    "the tokenizer is cut off": (
        lambda f: write(f / "tokenizer.json", (f / "tokenizer.json").read_bytes()[:99]),
        r"tokenizer\.json is not a tokenizer",
    ),
    "the tokenizer's settings are cut off": (
        lambda f: write(f / "tokenizer_config.json", b'{"eos'),
        r"tokenizer_config\.json is no JSON",
    ),
    "the tokenizer's settings are a list": (
        lambda f: write(f / "tokenizer_config.json", b"[]"),
        r"tokenizer_config\.json is no JSON object",
    ),
    "what is generated is cut off": (
        lambda f: [
            write(f / "tokenizer_config.json", b"{}"),
            write(f / "generation_config.json", b"{"),
        ],
        r"generation_config\.json is no JSON",
    ),
    "the tokenizer is a pointer of git lfs": (
        lambda f: write(f / "tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n"),
        r"tokenizer\.json is a pointer of git lfs",
    ),
    "an adapter lies beside it": (
        lambda f: write(f / "adapter_config.json", b"{}"),
        r"adapter_config\.json belongs to an adapter",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_whole_is_named(name: str, folder: Path) -> None:
    damage, told = DAMAGES[name]
    damage(folder)
    with pytest.raises(UserError, match=told) as raised:
        check(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_plan_and_prepare_look_before_anything_starts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n\n".join(TEXTS * 40)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "job.yaml").write_text(
        f"{{name: a, task: language_modelling, data: {{source: {tmp_path}/a.txt}}, "
        f"model: {{init_from: {folder}}}, train: {{steps: 2}}, storage: {tmp_path}/runs}}"
    )
    assert main(["plan", str(tmp_path / "job.yaml")]) == 0
    gone = first(folder)
    gone.unlink()
    for command in ("plan", "prepare"):
        assert main([command, str(tmp_path / "job.yaml")]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "error: model.init_from: " in told and gone.name in told


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "llama3": ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'"),
    "older llama3": (
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_scaling: rope_type = 'linear'",
    ),
    "both places": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    "without a type": ({"rope_scaling": {"factor": 2.0}}, "'unknown'"),
    "no rope": ({"rope_parameters": "linear"}, "rope_parameters = 'linear'"),
    "partial": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "windows": ({"layer_types": ["sliding_attention"] * 2}, "sliding_attention"),
    "gptq": ({"quantization_config": {"quant_method": "gptq"}}, r"quantised weights \(gptq\)"),
    "words": ({"num_hidden_layers": "two"}, "num_layers"),
    "a list of layers": ({"max_position_embeddings": [32]}, "max_seq_len"),
    "no vocabulary": ({"vocab_size": None}, "vocab_size = None"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_this_transformer_is_not_is_refused_by_name(name: str, folder: Path) -> None:
    values, told = CONFIGS[name]
    change_json(folder / "config.json", **values)
    with pytest.raises(ValueError, match=told) as raised:
        job_of(folder)
    assert "model.init_from" in str(raised.value) and "config.json" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"model_type": ', b"\xff\xfe", b"null"])
def test_a_config_that_is_none_is_named(content: bytes, folder: Path) -> None:
    write(folder / "config.json", content)
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        job_of(folder)


def test_an_adapter_alone_is_named(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ValueError, match=r"adapter_config\.json belongs to an adapter"):
        job_of(folder)


def test_pickled_weights_alone_are_named(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    write(folder / "pytorch_model.bin", b"")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin; other formats can run code"):
        check(folder)


def test_more_tokens_than_rows_are_told_with_both_numbers(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    count = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save(str(path))
    with pytest.raises(UserError, match=rf"has {count + 2} tokens, .* only {count} rows"):
        check(folder)


def test_a_masked_model_needs_a_mask_before_anything_is_read(tmp_path: Path) -> None:
    processor = TextProcessor.fit(TEXTS, TokenizerConfig(vocab_size=280))
    config = transformers.BertConfig(
        vocab_size=290,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(processor.tokenizer_file())
    with pytest.raises(UserError, match="has no mask token"):
        check(tmp_path, "masked_language_modelling")
    check(tmp_path, "text_classification")
    with_mask = TextProcessor.fit(TEXTS, TokenizerConfig(vocab_size=280), (MASK,))
    (tmp_path / "tokenizer.json").write_bytes(with_mask.tokenizer_file())
    check(tmp_path, "masked_language_modelling")


# Where a text ends


ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "the tokenizer's settings": ({"tokenizer_config": {"eos_token": "cat"}}, "cat"),
    "with how it is matched": ({"tokenizer_config": {"eos_token": {"content": "cat"}}}, "cat"),
    "of two": (
        {"tokenizer_config": {"eos_token": "cat"}, "special_tokens_map": {"eos_token": "dog"}},
        "cat",
    ),
    "null": (
        {"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": "dog"}},
        "dog",
    ),
    "an end before a separator": (
        {"tokenizer_config": {"sep_token": "cat"}, "special_tokens_map": {"eos_token": "dog"}},
        "dog",
    ),
    "a separator": ({"special_tokens_map": {"sep_token": "dog"}}, "dog"),
    "what is generated": ({"generation_config": {"eos_token_id": "cat"}}, "cat"),
    "several": ({"config": {"eos_token_id": ["dog", "cat"]}}, "dog"),
    "what no tokenizer has": (
        {"generation_config": {"eos_token_id": 9999}, "config": {"eos_token_id": "cat"}},
        "cat",
    ),
    "nothing": ({}, "<|endoftext|>"),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_is_found_where_it_is_said(name: str, folder: Path) -> None:
    settings, expected = ENDS[name]
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["cat", "dog"])
    tokenizer.save(str(path))
    change_json(folder / "config.json", vocab_size=400, eos_token_id=None)
    (folder / "tokenizer_config.json").unlink()
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = {"cat": tokenizer.token_to_id("cat"), "dog": tokenizer.token_to_id("dog")}
    for file, values in settings.items():
        if isinstance(said := values.get("eos_token_id"), list):
            values = {"eos_token_id": [ids[token] for token in said]}
        elif said in ids:
            values = {"eos_token_id": ids[said]}
        place = folder / f"{file}.json"
        place.write_text("{}") if not place.exists() else None
        change_json(place, **values)
    processor = pretrained.fit_text([], TokenizerConfig(), job_of(folder).model)
    assert processor.end == expected
    assert TextProcessor.from_bytes(processor.to_bytes()).end == expected


def test_where_nothing_says_the_end_all_places_are_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "generation_config.json").unlink(missing_ok=True)
    change_json(folder / "config.json", eos_token_id=None)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<stop>"))
    with pytest.raises(UserError, match=r"tokenizer_config.*special_tokens.*generation.*config"):
        check(folder)


# What is told


def told(folder: Path, task: str, processor: Any = None) -> list[str]:
    job = job_of(folder, task)
    built = job.build_task()
    model = built.build_model(pretrained.read_config(Folder(str(folder)))[1], 2)
    return pretrained.notices(model, Folder(str(folder)), Outputs.of(built, processor))


def test_a_whole_model_is_no_news(folder: Path) -> None:
    assert told(folder, "language_modelling") == []


def test_weights_without_a_place_are_told(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=1)
    (line,) = told(folder, "language_modelling")
    assert "not used: model.layers.1." in line and "and 6 more" in line


def test_a_body_alone_begins_with_a_new_head(folder: Path) -> None:
    change_json(folder / "config.json", architectures=["LlamaModel"])
    in_one_file(folder, lambda w: w.pop("lm_head.weight"))
    (line,) = told(folder, "language_modelling")
    assert (
        line == "model.init_from has no head for this task: head.logits start from random weights"
    )


@pytest.mark.parametrize("other", [True, False])
def test_a_head_beside_its_twin_is_told_where_it_differs(other: bool, folder: Path) -> None:
    def tie(weights: dict[str, torch.Tensor]) -> None:
        embedding = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = embedding + 1 if other else embedding.clone()

    in_one_file(folder, tie)
    change_json(folder / "config.json", tie_word_embeddings=True)
    lines = told(folder, "language_modelling")
    assert len(lines) == other and all(
        "different values in model.embed_tokens.weight and lm_head" in line for line in lines
    )


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_of_wrapped_modules_are_read(wrapper: str, folder: Path) -> None:
    def wrap(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[wrapper + name] = weights.pop(name)

    in_one_file(folder, wrap)
    check(folder)
    assert told(folder, "language_modelling") == []
