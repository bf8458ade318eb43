"""Labels and numbers: what is one, what is none, and what is told of them."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.processors.labels import LabelProcessor, check_labels, label_text
from orchestrator.processors.numbers import NumberProcessor, check_numbers, parse_number
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.tasks.metrics import classification_metrics
from orchestrator.tasks.task import LeftOut, Task

TEXT = TextProcessor.fit(["a"], TokenizerConfig(vocab_size=257))


def task_of(name: str) -> Task[Any]:
    settings = {"name": "a", "task": name, "data": {"source": "x"}}
    return Job.model_validate(settings).build_task()


def labels_of(*labels: str) -> LabelProcessor:
    pairs = [("a", label) for label in labels]
    fitted = LabelProcessor.fit(pairs, lambda texts: TEXT)
    return LabelProcessor.from_bytes(fitted.to_bytes())


def values(train: dict[str, int], **others: dict[str, int]) -> dict[str, Counter[str]]:
    empty: dict[str, dict[str, int]] = {"validation": {}, "test": {}}
    return {split: Counter(v) for split, v in {"train": train, **empty, **others}.items()}


# Labels


@pytest.mark.parametrize(
    "label", ["", "  ", "NaN", "nan", "null", "NULL", "\u00a0", "\\N", "<NA>", "#N/A"]
)
def test_no_label_is_no_class(label: str) -> None:
    assert label_text(label) is None
    with pytest.raises(LeftOut):
        task_of("text_classification").clean({"text": "x", "label": label})


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("1.0", "1"),
        ("-1.000", "-1"),
        ("0.0", "0"),
        ("-0.0", "0"),
        ("1.50", "1.50"),
        ("01.0", "01.0"),
        ("1.10", "1.10"),
        (" pos ", "pos"),
        ("\ufeffpos\u200b", "pos"),
        ("cafe\u0301", "caf\u00e9"),
        ("?", "?"),
        ("None", "None"),
    ],
)
def test_a_label_is_normalised_as_texts_are_and_whole_numbers_are_written_whole(
    label: str, name: str
) -> None:
    assert label_text(label) == name


def test_one_and_true_are_one_class_by_its_commonest_name() -> None:
    processor = labels_of("True", "True", "1", "false", "mixed")
    assert processor.labels == ["True", "false", "mixed"]
    assert [processor.number(label) for label in ("true", "TRUE", "1")] == [0, 0, 0]
    assert [processor.number(label) for label in ("0", "False", "other")] == [1, 1, -1]


def test_a_request_has_no_label() -> None:
    task = task_of("text_classification")
    cleaned = task.clean({"text": "x", "label": None})
    assert cleaned is not None
    assert task.encode([cleaned], labels_of("a", "b"))["label"].tolist() == [-1]


def test_a_question_mark_is_a_label() -> None:
    task = task_of("text_classification")
    cleaned = task.clean({"text": "x", "label": "?"})
    assert cleaned is not None
    assert task.encode([cleaned], labels_of("?", "b"))["label"].tolist() == [0]


def test_one_class_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match="all 5 training rows have the label 'spam'"):
        check_labels(values({"spam": 5}), labels_of("spam"))
    with pytest.raises(UserError, match="all 5 training rows have the label '1'"):
        check_labels(values({"1": 3, "true": 2}), labels_of("1", "true"))
    with pytest.raises(UserError, match="only validation and test have others, 'neg': add rows"):
        check_labels(values({"pos": 3}, test={"neg": 1}), labels_of("pos"))


def test_a_label_that_training_never_saw_is_told_with_its_count() -> None:
    processor = labels_of("pos", "neg")
    seen = values({"pos": 50, "neg": 50}, test={"mixed": 20, "pos": 20})
    assert check_labels(seen, processor) == [
        "20 of 40 test rows have a label that no training row has, and count as mistakes: "
        "'mixed' (20)"
    ]
    with pytest.raises(UserError, match=r"not one of the 20 test rows.*'-1'.*data.test_source"):
        check_labels(values({"pos": 50, "neg": 50}, test={"-1": 20}), processor)
    few = values({"pos": 50, "neg": 50}, validation={"-1": 2})
    assert "2 of 2 validation rows" in check_labels(few, processor)[0]


def test_as_many_classes_as_rows_are_told() -> None:
    names = [f"id {i}" for i in range(100)]
    (told,) = check_labels(values(dict.fromkeys(names, 1)), labels_of(*names))
    assert "100 labels on 100 training rows" in told
    (told,) = check_labels(values({"a": 50, "b": 49, "lable": 1}), labels_of("a", "b", "lable"))
    assert told == "1 labels have a single training row: 'lable'"


def test_labels_of_which_none_is_known_may_be_no_classes() -> None:
    names = [f"id {i}" for i in range(100)]
    other = {f"other {i}": 1 for i in range(10)}
    seen = values(dict.fromkeys(names, 1), validation=other)
    with pytest.raises(UserError, match=r"does data\.columns\.label name classes"):
        check_labels(seen, labels_of(*names))


def test_labels_that_may_be_none_or_one_are_told() -> None:
    (told,) = check_labels(values({"pos": 5, "neg": 5, "NA": 2}), labels_of("pos", "neg", "NA"))
    assert told == "'NA' (2) counts as a class: leave the cell blank if it means no label"
    (told,) = check_labels(values({"pos": 5, "neg": 5, "Pos": 2}), labels_of("pos", "neg", "Pos"))
    assert "'pos' (5), 'Pos' (2) differ only in upper and lower case" in told


def test_usual_labels_are_worth_no_word() -> None:
    seen = values({"a": 50, "b": 3}, test={"a": 3, "b": 1}, validation={"b": 1})
    assert check_labels(seen, labels_of("a", "b")) == []


def test_a_loss_over_no_known_label_is_none() -> None:
    shares = np.full((3, 2), 0.5)
    assert classification_metrics(shares, np.array([-1, -1, -1])) == {"accuracy": 0.0}
    assert "loss" in classification_metrics(shares, np.array([0, -1, -1]))


# Numbers


@pytest.mark.parametrize(
    "text", ["", "?", "NA", "NaN", "-nan", "null", "None", "-", "\\N", "<NA>", "—"]
)
def test_what_stands_for_no_number_leaves_its_row_out(text: str) -> None:
    assert parse_number(text) is None
    with pytest.raises(LeftOut):
        task_of("text_regression").clean({"text": "x", "number": text})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 3.5 ", 3.5),
        ("1 234 567.5", 1234567.5),
        ("1\u202f234", 1234.0),
        ("-1\u00a0000", -1000.0),
        ("+2e3", 2000.0),
        ("12.50", 12.5),
        ("1e100", 1e100),
        ("\u22125", -5.0),
    ],
)
def test_numbers_in_text(text: str, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text", ["inf", "-Infinity", "1e308", "-1e308", "1e999", "12 34", "5 stars"]
)
def test_what_cannot_be_standardised_is_set_aside(text: str) -> None:
    with pytest.raises(ValueError, match=text.split()[0]) as caught:
        task_of("text_regression").clean({"text": "x", "number": text})
    assert not isinstance(caught.value, LeftOut)


@pytest.mark.parametrize("text", ["1,5", "$5", "5 %", "1,234.5"])
def test_how_a_number_is_written_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="a point before decimals"):
        parse_number(text)


@pytest.mark.parametrize("numbers", [[1e100, -1e100, 1.0], [5.0] * 7, [0.1] * 9, [1e-300, 2e-300]])
def test_standardised_numbers_are_finite_and_come_back(numbers: list[float]) -> None:
    processor = NumberProcessor.fit(TEXT, numbers)
    found = np.array([*numbers, 1e100, -1e100, 0.0])
    scaled = processor.standardised(found)
    assert scaled.dtype == np.float32 and np.isfinite(np.square(scaled)).all()
    count = len(numbers)
    back = processor.restored(scaled)[:count]
    assert np.allclose(back, numbers, rtol=1e-5, atol=1e-6 * processor.spread)


def test_references_are_the_numbers_that_were_given() -> None:
    task = task_of("text_regression")
    rows = [task.clean({"text": "x", "number": text}) for text in ("16777217", "0.1", "3")]
    kept = [row for row in rows if row is not None]
    processor = task.fit_processor(kept)
    assert task.encode(kept, processor)["wanted"].tolist() == [16777217.0, 0.1, 3.0]


def test_equal_numbers_are_an_error_and_far_ones_are_told() -> None:
    with pytest.raises(UserError, match=r"all 7 training rows have the number 5\.0"):
        check_numbers(values({"5.0": 7}))
    numbers = {repr(i / 10): 1 for i in range(100)}
    assert check_numbers(values(numbers)) == []
    (told,) = check_numbers(values({**numbers, "-1e+30": 2}))
    assert told.startswith("2 of 102 training rows") and "-1e+30" in told


def test_bleu_is_beside_whole_texts_however_much_of_them_was_learned() -> None:
    task = task_of("translation")
    words = [f"w{i}" for i in range(8)]
    rows = [
        {"source": " ".join([*words, *("s" * 60)]), "target": " ".join([*words, *("t" * 60)])}
        for _ in range(5)
    ]
    processor = task.fit_processor(rows)
    arrays = task.encode(rows, processor) | task.keep(rows)
    copied = task.baselines(arrays, arrays, processor)["copy of the source"]
    from sacrebleu import corpus_bleu

    sources, targets = ([row[side] for row in rows] for side in ("source", "target"))
    assert copied["bleu"] == pytest.approx(corpus_bleu(sources, [targets]).score)
    assert copied["bleu"] < 20


def test_scores_of_numbers_are_json() -> None:
    from orchestrator.tasks.metrics import regression_metrics

    found = regression_metrics(np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    assert all(math.isfinite(value) for value in found.values())
    json.dumps(found, allow_nan=False)
