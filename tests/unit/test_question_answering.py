"""Both kinds of question answering: spans found and cut, answers said whole."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.infer.batch import to_device
from orchestrator.job.job import Job
from orchestrator.tasks.answers import score_answers, unpack
from orchestrator.tasks.task import LeftOut, Task

CPU = torch.device("cpu")
CONTEXT = "秦川雄帝宅 and Ann met Bob in the naïve café 🙂 of Paris."


def make(task: str, length: int = 96) -> Task[Any]:
    model = {"num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": length}
    job = {"name": "a", "task": task, "data": {"source": "x"}, "model": model}
    return Job.model_validate({**job, "tokenizer": {"vocab_size": 300}}).build_task()


def ask(answer: str, question: str = "Who?", context: str = CONTEXT) -> dict[str, str]:
    row = {"context": context, "question": question, "answer": answer}
    return row | {"answer_start": str(context.find(answer))}


class Oracle(torch.nn.Module):
    """Says with certainty where the answers of a batch begin and end."""

    def __init__(self, start: list[int], end: list[int]) -> None:
        super().__init__()
        self.bounds = start, end

    def forward(self, tokens_BT: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
        logits_BT2 = torch.zeros(*tokens_BT.shape, 2)
        for side, places in enumerate(self.bounds):
            logits_BT2[range(len(places)), places, side] = 30.0
        return logits_BT2


@pytest.mark.parametrize("answer", ["Ann", "秦川", "帝宅 and Ann", "café 🙂", "Paris."])
def test_a_span_is_found_again_from_its_tokens(answer: str) -> None:
    task = make("extractive_question_answering")
    rows = [task.clean(ask(answer)), task.clean(ask("Bob", question="Met by whom, 秦川?"))]
    processor = task.fit_processor(rows)
    arrays = task.encode(rows, processor)
    batch = to_device(arrays, CPU)
    oracle = Oracle(arrays["start"].tolist(), arrays["end"].tolist())
    found = task.predict(oracle, batch, processor)
    assert found["predictions"].tolist() == [answer, "Bob"]
    found |= task.keep(rows)
    assert task.score(found)["f1"] == 1 and task.score(found)["loss"] < 1e-3
    assert task.reply(found, 0, processor)["probability"] > 0.99


def test_an_answer_beyond_the_context_is_a_mistake_that_teaches_nothing() -> None:
    task = make("extractive_question_answering", length=20)
    rows = [task.clean(ask("Paris")), task.clean(ask("秦川"))]
    processor = task.fit_processor(rows)
    arrays = task.encode(rows, processor)
    assert arrays["start"][0] == -1 < arrays["start"][1]
    batch = to_device(arrays, CPU)
    model = task.build_model(processor.vocab_size, 1)
    loss, count = task.loss(model, batch)
    assert count == 1 and loss > 0
    with torch.no_grad():
        found = task.predict(model, batch, processor)
    assert [unpack(kept) for kept in task.keep(rows)["answers"]] == [["Paris"], ["秦川"]]
    assert task.score(found | task.keep(rows))["f1"] < 1
    alone = {name: values[:1] for name, values in (found | task.keep(rows)).items()}
    assert "loss" not in task.score(alone)


def test_neither_the_question_nor_padding_is_ever_the_answer() -> None:
    task = make("extractive_question_answering")
    rows = [task.clean(ask("Ann")), task.clean(ask("b", context="a b c"))]
    processor = task.fit_processor(rows)
    batch = to_device(task.encode(rows, processor), CPU)
    torch.manual_seed(0)
    for _ in range(20):
        model = task.build_model(processor.vocab_size, 1).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
            said = task.predict(model, batch, processor)["predictions"].tolist()
        assert all(one in row["context"] for one, row in zip(said, rows, strict=True))


def test_a_long_question_leaves_room_for_the_context() -> None:
    task = make("extractive_question_answering", length=32)
    rows = [task.clean(ask("Ann", question="why " * 100, context="Ann came"))]
    processor = task.fit_processor(rows)
    arrays = task.encode(rows, processor)
    assert arrays["context"][0] == 17 <= arrays["start"][0]


@torch.inference_mode()
def test_an_answer_counts_as_right_just_where_generation_says_it() -> None:
    task = make("question_answering")
    words = ["red", "green", "blue", "red", "红色", "naïve 🙂"]
    rows = [
        task.clean({"context": f"box {i} is {word}", "question": f"box {i}?", "answer": word})
        for i, word in enumerate(words)
    ]
    processor = task.fit_processor(rows)
    batch = to_device(task.encode(rows, processor), CPU)
    for seed in range(12):
        torch.manual_seed(seed)
        model = task.build_model(processor.vocab_size, 1).eval()
        for name, parameter in model.named_parameters():
            if "bias_V" in name:  # so that some answers come out right by chance
                tokens = processor.encode(words[seed % len(words)])
                parameter[tokens[0]] += 3.0
                parameter[processor.end_token] += 2.9
        right = task.predict(model, batch, processor)["right"]
        said = task.answer(model, batch, processor)
        exact = [one == other for one, other in zip(said["predictions"], words, strict=True)]
        assert right.tolist() == exact


def test_a_question_may_come_without_a_context() -> None:
    task = make("question_answering")
    row = task.clean({"context": "", "question": "1 + 1?", "answer": "2"})
    processor = task.fit_processor([row])
    arrays = task.encode([row], processor)
    tokens = arrays["source"][0, : arrays["source_length"][0]].tolist()
    assert tokens == [processor.end_token, *processor.encode("1 + 1?")]


def test_the_commonest_answer_is_that_of_the_same_question_where_there_is_one() -> None:
    task = make("question_answering")
    known = [("where?", "hall"), ("where?", "hall"), ("where?", "loft"), ("who?", "Ann")]
    asked = [("where?", "hall"), ("who?", "Ann"), ("when?", "hall")]
    rows = [
        [
            task.clean({"context": f"{i}", "question": q, "answer": a})
            for i, (q, a) in enumerate(pairs)
        ]
        for pairs in (known, asked)
    ]
    processor = task.fit_processor(rows[0])
    train, test = (task.encode(each, processor) for each in rows)
    found = task.baselines(train, test | task.keep(rows[1]), processor)
    assert found["commonest answer"]["exact_match"] == pytest.approx(2 / 3)
    assert found["commonest to the question"]["exact_match"] == 1


@pytest.mark.parametrize("task", ["question_answering", "extractive_question_answering"])
def test_all_answers_to_a_question_are_kept_and_none_is_told(task: str) -> None:
    made = make(task)
    row = ask("Ann") | {"answer": ["nobody", " Ann ", "Bob", "Ann"], "answer_start": [99, 10, 20]}
    cleaned = made.clean(row)
    assert sorted(unpack(cleaned["answer"])) == ["Ann", "Bob", "nobody"]
    kept = made.keep([cleaned])
    assert score_answers(["bob"], kept) == {"exact_match": 1, "f1": 1}
    with pytest.raises(LeftOut, match="unanswerable"):
        made.clean(row | {"answer": []})


def test_the_answer_that_is_learned_is_one_that_the_context_holds() -> None:
    task = make("extractive_question_answering")
    row = ask("Ann") | {"answer": ["nobody", "Bob"], "answer_start": [0, 22]}
    cleaned = task.clean(row)
    start = int(cleaned["answer_start"])
    assert CONTEXT[start : start + 3] == "Bob" == unpack(cleaned["answer"])[0]
    with pytest.raises(ValueError, match="'nobody' does not occur"):
        task.clean(row | {"answer": ["nobody"]})


def test_blank_answers_and_repeated_ones_have_starts_too() -> None:
    task = make("extractive_question_answering")
    row = ask("Ann", context="Bob met Ann, and Ann met Bob.")
    for answers, starts in ((["", "Bob"], [0, 25]), (["nobody", "nobody", "Bob"], [0, 0, 25])):
        cleaned = task.clean(row | {"answer": answers, "answer_start": starts})
        assert cleaned["answer_start"] == "25"


def test_numbers_come_back_in_their_own_unit() -> None:
    task = make("text_regression")
    rows = [task.clean({"text": f"row {i}", "number": str(100 + 10 * i)}) for i in range(5)]
    processor = task.load_processor(task.fit_processor(rows).to_bytes())
    assert (processor.mean, processor.spread) == (120, pytest.approx(np.std(range(0, 50, 10))))
    batch = to_device(task.encode(rows, processor), CPU)

    class Knowing(torch.nn.Module):
        def forward(self, tokens_BT: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
            return batch["number"][:, None]

    found = task.predict(Knowing().eval(), batch, processor)
    assert task.score(found)["rmse"] == pytest.approx(0, abs=1e-4)
    assert task.reply(found, 3, processor)["number"] == pytest.approx(130)
    baselines = task.baselines(*[task.encode(rows, processor)] * 2, processor)
    assert baselines["mean"]["rmse"] == pytest.approx(np.std(range(0, 50, 10)))
    assert baselines["ridge regression"]["rmse"] < baselines["mean"]["rmse"]
