"""lm-eval, unchanged, on a real server: its scores are those of `transformers` on the export.

`pip install 'orchestrator[lm-eval]'` brings it.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.evaluate.card import USE
from orchestrator.evaluate.export import write
from orchestrator.storage.folder import Folder
from tests.unit.served import CONTEXT, JOB, PLAIN, log_softmax, served, tiny_engine, trained_model

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: see the extra lm-eval")
pytestmark = pytest.mark.filterwarnings("ignore")

QUESTIONS = [
    {"question": "the quick brown", "choices": [" fox", " dog jumps", " the"], "answer": 0},
    {"question": "the dog sleeps", "choices": [" on", " fox, é", "!"], "answer": 0},
    {"question": "over the lazy", "choices": ["\n", " dog", " brown fox"], "answer": 1},
]
CHOICE: dict[str, Any] = {
    "task": "choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITE: dict[str, Any] = {
    "task": "write",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n", "zq"], "max_gen_toks": 16, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
TEXT: dict[str, Any] = {
    "task": "text",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}} and the dog sleeps on{{choices[0]}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(tiny_engine()) as found:
        yield found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
    }
    return [{**task, **data} for task in (CHOICE, WRITE, TEXT)]


def evaluated(tasks: list[dict[str, Any]], **model: Any) -> dict[str, list[Any]]:
    """What the model answered, by task, in the order of the questions."""
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        tasks=[dict(task) for task in tasks],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        **model,
    )
    return {
        name: [sample["resps"] for sample in sorted(samples, key=lambda each: each["doc_id"])]
        for name, samples in found["samples"].items()
    }


def numbers(resps: list[Any]) -> list[float]:
    flat: list[float] = []
    for each in resps:
        if isinstance(each, list | tuple):
            flat += numbers(list(each))
        else:
            flat.append(float(each))
    return flat


@pytest.fixture(scope="module")
def theirs(
    tasks: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    """What `transformers` answers, with the export."""
    path = tmp_path_factory.mktemp("export")
    write(JOB, PLAIN, trained_model().model, [USE], Folder(str(path)))
    # By default `hf` puts the end token before a text, which no remote tokenizer does.
    exported = {"pretrained": str(path), "device": "cpu", "add_bos_token": False}
    return evaluated(tasks, model="hf", model_args=exported, batch_size=1)


@pytest.mark.parametrize(("batch_size", "num_concurrent"), [(1, 1), (3, 2)])
def test_scores_are_those_of_transformers_on_the_export(
    url: str,
    tasks: list[dict[str, Any]],
    theirs: dict[str, list[Any]],
    batch_size: int,
    num_concurrent: int,
) -> None:
    served_model = {
        "model": "tiny",
        "base_url": f"{url}/v1/completions",
        "max_length": CONTEXT,
        "num_concurrent": num_concurrent,
    }
    ours = evaluated(
        tasks, model="local-completions", model_args=served_model, batch_size=batch_size
    )
    assert ours.keys() == theirs.keys() == {"choice", "write", "text"}
    for name in ("choice", "text"):
        assert numbers(ours[name]) == pytest.approx(numbers(theirs[name]), abs=1e-3)
    assert ours["write"] == theirs["write"]


@pytest.mark.parametrize("tokenized", [True, False])
def test_log_likelihoods_are_the_models_own(url: str, tokenized: bool) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{url}/v1/completions",
        max_length=CONTEXT,
        batch_size=2,
        tokenized_requests=tokenized,
    )
    assert model.tokenizer_backend == "remote"
    assert model.prefix_token_id == PLAIN.end_token
    pairs = [("the dog", " sleeps on"), ("a", "\n"), ("the quick", " é")]
    pairs += [("", "the")] if tokenized else []  # as text, lm-eval sends the end token's name
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    for (context, continuation), (found, is_greedy) in zip(
        pairs, model.loglikelihood(asked), strict=True
    ):
        before = PLAIN.encode(context)
        if not (before and tokenized):  # the endpoint begins a text with an end token, too
            before = [PLAIN.end_token, *before]
        after = PLAIN.encode(context + continuation)[len(PLAIN.encode(context)) :]
        logprobs_TV = log_softmax([*before, *after])[len(before) - 1 : -1]
        own = sum(float(row[token]) for row, token in zip(logprobs_TV, after, strict=True))
        assert found == pytest.approx(own, abs=1e-3)
        assert is_greedy == (logprobs_TV.argmax(-1).tolist() == after)
