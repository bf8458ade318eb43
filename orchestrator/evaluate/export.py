"""A finished training as Hugging Face's libraries load it, and other jobs of ours: weights,
tokenizer and a card."""

import json
from typing import Any

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import load_weights
from orchestrator.learn.fit import load_processor
from orchestrator.model import hf
from orchestrator.model.hf import SPAN, Outputs
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.processors.text import TextProcessor
from orchestrator.storage.artifact import Evaluation, PreparedData, Training
from orchestrator.storage.folder import Folder
from orchestrator.tasks.extractive_question_answering import (
    LONGEST_ANSWER,
    ExtractiveQuestionAnswering,
)
from orchestrator.tasks.question_answering import QuestionAnswering
from orchestrator.tasks.task import Task
from orchestrator.tasks.text_classification import TextClassification
from orchestrator.tasks.translation import BEAMS, Translation

AUTO = {  # the class to load it with, by head and family
    "label": "AutoModelForSequenceClassification",
    "each_token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "decoder": "AutoModelForCausalLM",
    "encoder": "AutoModelForMaskedLM",
    "encoder_decoder": "AutoModelForSeq2SeqLM",
}


def check_theirs(job: Job, training: Training) -> None:
    """
    Raises:
        UserError: where no architecture of Hugging Face's is the job's model.
    """
    model = job.model
    if not hf.has_architecture(model):
        raise UserError(
            f"no architecture of Hugging Face's is a model like this one: a {model.family} with "
            f"norm = {model.norm} ({model.norm_position}), positions = {model.positions}, "
            f"activation = {model.activation}, bias = {str(model.bias).lower()}; other jobs begin "
            f"with it by model.init_from: {training.exported}"
        )


def export(
    job: Job,
    prepared: PreparedData,
    training: Training,
    evaluation: Evaluation | None,
    folder: Folder,
) -> str:
    """Write the best checkpoint; returns the class that loads it, unless no architecture of Hugging
    Face's is the model: then `model.init_from` alone does.

    Raises:
        UserError: where its input is no text.
    """
    task = job.build_task()
    processor = load_processor(task, prepared)
    model = task.build_model(processor.vocab_size, processor.num_outputs)
    load_weights(model, training.checkpoint())
    return write(job, processor, model, _card(job, training, evaluation), folder)


def write(job: Job, processor: Any, model: Transformer, card: list[str], folder: Folder) -> str:
    """Write a model with what encodes its texts, the card last; see `export`."""
    text = getattr(processor, "text", processor)
    if not isinstance(text, TextProcessor):
        raise UserError(f"task = {job.task}: only models of text can be exported")
    task = job.build_task()
    outputs = Outputs.of(task, processor)
    special = _special_tokens(text)
    ids = {f"{kind}_id": text.tokenizer.token_to_id(token) for kind, token in special.items()}
    if job.model.family == "encoder_decoder":
        ids["decoder_start_token_id"] = text.end_token
    pretrained.save(model, folder, outputs, **ids)
    folder.write("tokenizer.json", _tokenizer(task, text))
    hides = model.head_kind == "tokens" and job.model.family == "encoder"
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": job.model.max_seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        # What a user typed is text, never a control token; a mask is there to be typed.
        "split_special_tokens": not hides,
        **({"truncation_side": "left"} if isinstance(task, QuestionAnswering) else {}),
        **({"padding_side": "left"} if job.model.family == "decoder" else {}),
    }
    folder.write("tokenizer_config.json", json.dumps(settings, indent=2).encode())
    if job.model.family != "encoder":
        found: dict[str, Any] = {**ids, "max_length": job.model.max_seq_len, "do_sample": False}
        if isinstance(task, Translation):
            found |= {"num_beams": BEAMS, "length_penalty": 1.0, "early_stopping": False}
        folder.write("generation_config.json", json.dumps(found, indent=2).encode())
    auto = AUTO[model.head_kind if model.head_kind != "tokens" else job.model.family]
    if hf.export_config(model, outputs)["architectures"] == ["BertForQuestionAnswering"]:
        auto = AUTO["span"]
    lines = _use(task, outputs, auto) if hf.has_architecture(job.model) else INIT_FROM
    at = card.index(USE)
    content = "\n".join([*card[:at], *lines, *card[at + 1 :]])
    folder.write("README.md", content.encode())
    return auto


def _special_tokens(text: TextProcessor) -> dict[str, str]:
    """What the tokenizer's special tokens are called, by kind."""
    if text.special:  # it has some of its own
        return {"eos_token": text.end, "pad_token": text.end, **text.special}
    own = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), text.end)
    return own | ({"mask_token": text.mask} if text.mask is not None else {})


def _tokenizer(task: Task[Any], text: TextProcessor) -> bytes:
    """tokenizer.json, made to put around a text, or between two, what `encode` of the task does."""
    before, after, between = text.prefix, text.suffix, [text.end_token]
    if task.model.family == "decoder":
        before, after = [text.end_token, *text.opening], []  # a text begins after another's end
    elif not isinstance(task, ExtractiveQuestionAnswering | QuestionAnswering):
        return text.tokenizer_file()
    names = {i: str(text.tokenizer.id_to_token(i)) for i in {*before, *after, *between}}
    first, middle, last = (
        [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in part]
        for part in (before, between, after)
    )
    one, other = ({"Sequence": {"id": each, "type_id": 0}} for each in "AB")
    content = json.loads(text.tokenizer_file())
    # As JSON: what the library reads of text cannot hold every name of a token.
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*first, one, *last],
        "pair": [*first, one, *middle, other, *last],
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for i, n in names.items()},
    }
    return json.dumps(content, ensure_ascii=False).encode()


USE = "USE"  # in a card, where the lines stand that load it
INIT_FROM = [
    "No architecture of `transformers` is this model. A job of the orchestrator begins with it by",
    "",
    "```yaml",
    "model: {init_from: PATH}",
    "```",
]


def _use(task: Task[Any], outputs: Outputs, auto: str) -> list[str]:
    """Python that loads it, and answers as the endpoint does."""
    batch = 'tokenizer(text, truncation=True, return_tensors="pt")'
    if isinstance(task, ExtractiveQuestionAnswering):
        found = "model(**batch)"
        logits = [f"start, end = {found}.logits[0].mT  # {', '.join(SPAN)}: see id2label"]
        if auto == AUTO["span"]:
            logits = [f"found = {found}", "start, end = found.start_logits[0], found.end_logits[0]"]
        lines = [
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
    elif isinstance(task, QuestionAnswering):
        lines = [
            'batch = tokenizer(context, question, truncation="only_first", return_tensors="pt")',
            "answer = tokenizer.decode(model.generate(**batch)[0], skip_special_tokens=True)",
        ]
    elif task.model.family != "encoder":
        cut = "" if task.model.family == "decoder" else ", truncation=True"  # a prompt is not cut
        lines = [
            f'batch = tokenizer(text{cut}, return_tensors="pt")',
            "written = tokenizer.decode(model.generate(**batch)[0], skip_special_tokens=True)",
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


def _card(job: Job, training: Training, evaluation: Evaluation | None) -> list[str]:
    """What it is, how good it is, and how to load it: the latter in place of `USE`."""
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
        for who, metrics in scores.items():
            cells = [f"{metrics[name]:.4g}" if name in metrics else "" for name in names]
            lines.append(f"| {who} | {' | '.join(cells)} |")
        lines.append("")
    config = json.dumps(job.model_dump(mode="json", exclude={"storage"}), indent=1)
    return [*lines, "The job that made it:", "", "```json", config, "```", ""]
