"""The rows of `benchmarks.quality`: data set, job, figure, target and what others reached."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality_jobs import (
    babi,
    babi_first,
    bbbp,
    molecules,
    multi30k,
    rt_polarity,
    shakespeare,
    sst2,
    sst2_minilm,
    sst2_sentences,
    tang,
    tatoeba,
)

Report = dict[str, Any]  # an evaluation's report.json


@dataclass(frozen=True)
class Row:
    """A data set, the job that learns it, and the figure that counts."""

    what: str
    figure: str  # in words
    target: float
    job: Callable[[Path, Path], dict[str, Any]]  # of the data's folder and of one of its own
    read: Callable[[Report], dict[str, float]]  # the figures, the one that counts first
    beside: str = ""  # what others have published, or counted
    fewer: bool = False  # is better
    begins_with: str | None = None  # the row whose model it begins with
    better_than: str | None = None  # the row that it is to beat, in place of a target


def accuracy(report: Report) -> dict[str, float]:
    return named(report, "accuracy", "macro_f1")


def roc_auc(report: Report) -> dict[str, float]:
    return named(report, "roc_auc", "accuracy", "macro_f1")


def exact_match(report: Report) -> dict[str, float]:
    return named(report, "exact_match", "f1")


def bleu(report: Report) -> dict[str, float]:
    return named(report, "bleu", "chrf")


def named(report: Report, *names: str) -> dict[str, float]:
    return {name: report["metrics"][name] for name in names}


def nats_a_character(report: Report) -> dict[str, float]:
    """From bits a byte, which no tokenizer changes, and the characters of the test file."""
    (text,) = Path(report["config"]["data"]["test_source"]).parent.glob("test.*")
    rows = text.read_text(encoding="utf-8")
    if text.suffix == ".jsonl":
        rows = "\n".join("\n".join(json.loads(row)["paragraphs"]) for row in rows.splitlines())
    nats = report["metrics"]["bits_per_byte"] * math.log(2)
    return {"nats_per_character": nats * len(rows.encode()) / len(rows)}


ROWS = {
    "shakespeare": Row(
        "tiny Shakespeare, last 10 %",
        "nats a character",
        1.60,
        shakespeare,
        nats_a_character,
        "5-gram 1.669; nanoGPT on a CPU 1.88, on an A100 1.47",
        fewer=True,
    ),
    "tang": Row(
        "Tang poetry (zh), last 10 %",
        "nats a character",
        5.604,
        tang,
        nats_a_character,
        "2-gram 5.639, 3-gram 5.604",
        fewer=True,
    ),
    "sst2": Row("SST-2", "accuracy", 0.80, sst2, accuracy, "CNN-rand 0.827 with phrases"),
    "sst2_sentences": Row(
        "SST-2's training sentences, unlabelled",
        "pseudo-perplexity",
        math.inf,
        sst2_sentences,
        lambda report: named(report, "pseudo_perplexity"),
        fewer=True,
    ),
    "sst2_begun": Row(
        "SST-2, begun with the row above",
        "accuracy",
        0.80,
        sst2,
        accuracy,
        begins_with="sst2_sentences",
    ),
    "sst2_minilm": Row(
        "SST-2, begun with MiniLM: task, data and weights alone, one worker",
        "accuracy",
        0.88,
        sst2_minilm,
        accuracy,
    ),
    "rt_polarity": Row("rt-polarity", "accuracy", 0.76, rt_polarity, accuracy, "CNN-rand 0.761"),
    "molecules": Row(
        "24,445 molecules of ZINC as SMILES, unlabelled",
        "pseudo-perplexity",
        math.inf,
        molecules,
        lambda report: named(report, "pseudo_perplexity"),
        fewer=True,
    ),
    "bbbp": Row("BBBP, 200 labels of molecules", "area under the ROC curve", 0.0, bbbp, roc_auc),
    "bbbp_begun": Row(
        "the same 200, begun with the molecules of ZINC",
        "area under the ROC curve",
        0.0,
        bbbp,
        roc_auc,
        begins_with="molecules",
        better_than="bbbp",
    ),
    "multi30k": Row(
        "Multi30k en-de, test 2016",
        "BLEU",
        25.0,
        multi30k,
        bleu,
        "Transformer-tiny 41.0, 8,000 updates on 2 GPUs",
    ),
    "tatoeba": Row("Tatoeba en-zh", "BLEU", 0.0, tatoeba, bleu),
    "babi_first": Row(
        "bAbI, mostly task 1, for 2.5 minutes",
        "exact match of all five",
        0.0,
        babi_first,
        exact_match,
    ),
    "babi": Row(
        "bAbI 1, 2, 6, 15, 20 (10k), one model, begun with the row above",
        "exact match",
        0.90,
        babi,
        exact_match,
        "MemN2N on 1k, a model each: 1.00, 0.83, 0.92, 1.00, 1.00",
        begins_with="babi_first",
    ),
}
