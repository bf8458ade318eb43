"""An exported model's card, README.md: what it was trained for, its scores, and how to load it."""

import json
from typing import Any

from orchestrator.job.job import Job
from orchestrator.model.hf import SPAN, Outputs
from orchestrator.storage.artifact import Evaluation, Training
from orchestrator.tasks.extractive_question_answering import (
    LONGEST_ANSWER,
    ExtractiveQuestionAnswering,
)
from orchestrator.tasks.question_answering import QuestionAnswering
from orchestrator.tasks.task import Task
from orchestrator.tasks.text_classification import TextClassification

AUTO = {  # the class of `transformers` that loads a model: by its head, or by its family
    "label": "AutoModelForSequenceClassification",
    "each_token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "decoder": "AutoModelForCausalLM",
    "encoder": "AutoModelForMaskedLM",
    "encoder_decoder": "AutoModelForSeq2SeqLM",
}

USE = "USE"  # the place in a card for the lines that load the model
INIT_FROM = [
    "No architecture of `transformers` is this model. A job of the orchestrator begins with it:",
    "",
    "```yaml",
    "model: {init_from: PATH}",
    "```",
]


def card_lines(job: Job, training: Training, evaluation: Evaluation | None) -> list[str]:
    """The card's lines: the task, the scores, the job, and `USE` for how to load the model."""
    lines = [
        "---",
        "library_name: transformers",
        "---",
        f"# {job.name}",
        "",
        f"A Transformer ({job.model.family}) for `{job.task}` after {training.steps:,} steps.",
        "",
        USE,
        "",
    ]
    if evaluation is not None:
        scores = {"this model": evaluation.metrics, **evaluation.baselines}
        names = list(evaluation.metrics)
        lines += ["On the test split:", "", f"| | {' | '.join(names)} |"]
        lines += ["| --- |" + " ---: |" * len(names)]
        for scored, metrics in scores.items():
            cells = [f"{metrics[name]:.4g}" if name in metrics else "" for name in names]
            lines.append(f"| {scored} | {' | '.join(cells)} |")
        lines.append("")
    config = json.dumps(job.model_dump(mode="json", exclude={"storage"}), indent=1)
    return [*lines, "The job that trained it:", "", "```json", config, "```", ""]


def usage_lines(task: Task[Any], outputs: Outputs, auto: str) -> list[str]:
    """Lines of Python that load the model and answer as the endpoint does."""
    batch = 'tokenizer(text, truncation=True, return_tensors="pt")'
    if isinstance(task, ExtractiveQuestionAnswering):
        lines = _span_lines(auto)
    elif isinstance(task, QuestionAnswering):
        lines = [
            'batch = tokenizer(context, question, truncation="only_first", return_tensors="pt")',
            "answer = tokenizer.decode(model.generate(**batch)[0], skip_special_tokens=True)",
        ]
    elif task.model.family != "encoder":
        cut = "" if task.model.family == "decoder" else ", truncation=True"  # a prompt is not cut
        lines = [
            f'batch = tokenizer(text{cut}, return_tensors="pt")',
            "generated = tokenizer.decode(model.generate(**batch)[0], skip_special_tokens=True)",
        ]
    elif outputs.scale is not None:
        lines = [f"number = model(**{batch}).logits.item()"]
    elif isinstance(task, TextClassification):
        lines = [
            f"probabilities = model(**{batch}).logits.softmax(-1)[0]",
            "label = model.config.id2label[int(probabilities.argmax())]",
        ]
    else:
        lines = [f"logits = model(**{batch}).logits"]
    strip = "" if task.model.family == "decoder" else ", without space around it"
    return [
        "```python",
        "import torch",
        f"from transformers import AutoTokenizer, {auto}",
        "",
        f'model = {auto}.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        *lines,
        "```",
        "",
        f"Text is Unicode in its composed form{strip}: `unicodedata.normalize('NFC', text)"
        f"{'.strip()' if strip else ''}`.",
    ]


def _span_lines(auto: str) -> list[str]:
    """Lines that find the most probable answer of at most LONGEST_ANSWER tokens."""
    logits = [f"start, end = model(**batch).logits[0].mT  # {', '.join(SPAN)}: see id2label"]
    if auto == AUTO["span"]:
        logits = [
            "outputs = model(**batch)",
            "start, end = outputs.start_logits[0], outputs.end_logits[0]",
        ]
    return [
        'batch = tokenizer(question, context, truncation="only_second", return_tensors="pt")',
        *logits,
        "outside = torch.tensor([part != 1 for part in batch.sequence_ids(0)])",
        "pairs = (start + 0.0).masked_fill(outside, -1e9)[:, None] + "
        "end.masked_fill(outside, -1e9)",
        f"pairs += torch.full_like(pairs, -1e9).triu({LONGEST_ANSWER}) "
        f"+ torch.full_like(pairs, -1e9).tril(-1)",
        "first, last = divmod(int(pairs.argmax()), len(start))",
        'answer = tokenizer.decode(batch["input_ids"][0, first : last + 1]).strip()',
    ]
