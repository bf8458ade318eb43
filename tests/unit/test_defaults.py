"""What a job leaves open is chosen by its data and its time, and only that."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.job.defaults import derive
from orchestrator.job.fingerprint import fingerprint
from orchestrator.job.job import Job
from orchestrator.job.task_registry import TASKS
from orchestrator.model.config import SIZES, ModelConfig

MEGABYTE = 1 << 20


def make(task: str = "language_modelling", **sections: Any) -> Job:
    job = {"name": "a", "task": task, "data": {"source": "x"}, **sections}
    return Job.model_validate(job)


def chosen(job: Job, source_bytes: int) -> Job:
    return job.override(derive(job, source_bytes))


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("source_bytes", [1, 1000, MEGABYTE, 10**9, 10**13])
def test_a_job_of_task_and_data_alone_becomes_whole(task: str, source_bytes: int) -> None:
    job = chosen(make(task), source_bytes)
    assert not job.problems()
    assert job.train.global_batch_size >= 8 and 1e-4 < job.train.lr < 0.1
    assert chosen(make(task), source_bytes) == job  # a function of these


def test_more_data_and_more_time_make_a_larger_model() -> None:
    gpu = {"workers": 8, "gpus_per_worker": 1}
    jobs = [
        chosen(make(train={"minutes": 5}), 10**8),
        chosen(make(train={"minutes": 120}, cluster={"workers": 2}), 10**8),
        chosen(make(train={"minutes": 600}, cluster=gpu), 10**11),
    ]
    widths = [job.model.d_model for job in jobs]
    assert widths == sorted(set(widths))
    short_of_data = make(train={"minutes": 600}, cluster=gpu)
    assert chosen(short_of_data, 10**5).model.d_model == SIZES["tiny"]["d_model"]
    vocabularies = [chosen(make(), 10**power).tokenizer.vocab_size for power in (5, 7, 8, 10)]
    assert vocabularies == sorted(set(vocabularies))


def test_what_reads_alone_has_tokens_for_whole_words() -> None:
    sizes = (1000, 100_000, 720_000, MEGABYTE, 10**7, 10**9)
    found = [chosen(make("text_classification"), size).tokenizer.vocab_size for size in sizes]
    assert found == [1024, 1024, 8192, 8192, 32_768, 32_768]
    assert found[3] > chosen(make(), MEGABYTE).tokenizer.vocab_size


def test_what_is_repeated_often_is_dropped_out() -> None:
    dropouts = [chosen(make(), size).model.dropout for size in (10**9, MEGABYTE, 10**4)]
    assert dropouts == sorted(dropouts) and dropouts[0] == 0 < dropouts[-1]


def test_what_a_job_says_stays() -> None:
    said = {
        "model": {"size": "small", "d_model": 128, "dropout": 0.3, "max_seq_len": 32},
        "train": {"lr": 0.5, "global_batch_size": 24},
        "tokenizer": {"vocab_size": 999},
    }
    job = chosen(make(**said), 10**8)
    assert (job.model.num_layers, job.model.d_model, job.model.num_heads) == (6, 128, 4)
    assert (job.model.dropout, job.model.max_seq_len) == (0.3, 32)
    assert (job.train.lr, job.train.global_batch_size) == (0.5, 24)
    assert job.tokenizer.vocab_size == 999


def test_batches_can_be_dealt_to_the_workers() -> None:
    for workers in (3, 7, 600):
        assert not chosen(make(cluster={"workers": workers}), 10**8).problems()


@pytest.mark.parametrize("said", [{"num_layers": 6}, {"d_model": 96}, {"num_heads": 2}])
def test_a_job_that_says_how_large_its_model_is_keeps_the_fixed_defaults(
    said: dict[str, int],
) -> None:
    assert derive(make(model=said), 10**8) == {}


def test_a_size_stands_for_its_numbers_and_leaves_no_other_trace() -> None:
    by_size = make(model={"size": "small", "max_seq_len": 64})
    by_hand = make(model={**SIZES["small"], "max_seq_len": 64})
    assert fingerprint(by_size, "train") == fingerprint(by_hand, "train")
    larger = by_size.override({"model.size": "medium"})
    assert larger.model.d_model == SIZES["medium"]["d_model"]


def test_no_size_of_another_name() -> None:
    with pytest.raises(ValueError, match="huge"):
        ModelConfig.model_validate({"size": "huge"})
    with pytest.raises(UserError, match=r"model\.size"):
        make().override({"model.size": "huge"})


def begun_with(
    tmp_path: Path, task: str = "text_classification", *, config: dict[str, Any], **sections: Any
) -> Job:
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = {"init_from": str(tmp_path), **sections.pop("model", {})}
    return make(task, model=model, **sections)


BERT = {
    "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12,
    "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512,
    "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "hidden_act": "gelu",
}  # fmt: skip


def bert(width: int) -> dict[str, Any]:
    return {**BERT, "hidden_size": width}


def test_trained_weights_are_trained_further_gently(tmp_path: Path) -> None:
    job = chosen(begun_with(tmp_path, config=bert(384)), MEGABYTE)
    assert (job.train.optimizer, job.train.lr, job.train.betas) == ("adamw", 1e-4, (0.9, 0.999))
    assert (job.train.weight_decay, job.model.dropout, job.train.epochs) == (0.01, 0.1, 3.0)
    assert job.train.minutes == 5.0 and not job.problems()
    rates = [
        chosen(begun_with(tmp_path, config=bert(width)), MEGABYTE).train.lr
        for width in (120, 384, 768, 1152, 24_000)
    ]
    assert rates == [3e-4, 1e-4, 5e-5, 3e-5, 1e-5]


def test_few_rows_are_seen_more_often(tmp_path: Path) -> None:
    sizes = (10**9, MEGABYTE, 200_000, 1000)
    jobs = [chosen(begun_with(tmp_path, config=BERT), size) for size in sizes]
    assert [job.train.epochs for job in jobs] == [3.0, 3.0, 6.0, 20.0]


@pytest.mark.parametrize("budget", [{"steps": 500}, {"minutes": 20}, {"epochs": 1.5}])
def test_a_budget_that_is_said_is_all_of_it(tmp_path: Path, budget: dict[str, float]) -> None:
    job = chosen(begun_with(tmp_path, config=BERT, train=budget), MEGABYTE)
    said = {name: value for name, value in job.train if name in ("steps", "minutes", "epochs")}
    assert said == {"steps": None, "minutes": None, "epochs": None, **budget}
    assert job.train.warmup_steps == (30 if "steps" in budget else 40)


def test_what_a_job_says_of_trained_weights_stays(tmp_path: Path) -> None:
    said = {"optimizer": "muon", "lr": 0.01, "weight_decay": 0.3, "global_batch_size": 24}
    job = begun_with(tmp_path, config=BERT, train=said, model={"dropout": 0.3})
    job = chosen(job, MEGABYTE)
    assert {name: value for name, value in job.train if name in said} == said
    assert job.model.dropout == 0.3


def test_a_batch_of_trained_weights_can_be_dealt(tmp_path: Path) -> None:
    for workers in (3, 7, 100):
        job = begun_with(tmp_path, config=BERT, cluster={"workers": workers})
        assert not chosen(job, MEGABYTE).problems()


def test_t5_takes_a_higher_rate_and_no_decay(tmp_path: Path) -> None:
    t5 = {
        "model_type": "t5", "d_model": 512, "num_layers": 2, "num_heads": 8, "d_kv": 64,
        "d_ff": 2048, "vocab_size": 32128, "feed_forward_proj": "relu", "dropout_rate": 0.1,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "n_positions": 512,
    }  # fmt: skip
    job = chosen(begun_with(tmp_path, "translation", config=t5), MEGABYTE)
    assert (job.train.lr, job.train.weight_decay, job.train.optimizer) == (3e-4, 0.0, "adamw")


def test_gpt2_is_trained_further_at_its_usual_rate(tmp_path: Path) -> None:
    gpt2 = {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 2, "n_head": 12, "n_positions": 1024,
        "vocab_size": 50257, "activation_function": "gelu_new", "resid_pdrop": 0.1,
    }  # fmt: skip
    job = chosen(begun_with(tmp_path, "language_modelling", config=gpt2), MEGABYTE)
    assert (job.train.lr, job.train.optimizer, job.train.grad_clip) == (5e-5, "adamw", 1.0)
