"""A finished training in Hugging Face's layout: weights, tokenizer and a card.

Hugging Face's libraries load it, and other jobs begin with it by `model.init_from`. The command is
`orchestrator export JOB DIR`.
"""

import json
from typing import Any

from orchestrator.errors import UserError
from orchestrator.evaluate.card import AUTO, INIT_FROM, USE, card_lines, usage_lines
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.model import hf
from orchestrator.model.hf import Outputs
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.processors.text import TextProcessor
from orchestrator.storage.artifact import Evaluation, PreparedData, Training
from orchestrator.storage.folder import Folder
from orchestrator.tasks.extractive_question_answering import ExtractiveQuestionAnswering
from orchestrator.tasks.question_answering import QuestionAnswering
from orchestrator.tasks.task import Task
from orchestrator.tasks.translation import BEAMS, Translation


def check_theirs(job: Job, training: Training) -> None:
    """Check that an architecture of Hugging Face's is the job's model.

    Raises:
        UserError: if there is none, naming the settings that it depends on.
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
    """Write the best checkpoint into `folder`; returns the class of `transformers` that loads it.

    If no architecture of Hugging Face's is the model, only `model.init_from` loads it.

    Raises:
        UserError: if the model's input is not text.
    """
    trained = TrainedModel.load(job.build_task(), prepared, training.checkpoint())
    card = card_lines(job, training, evaluation)
    return write(job, trained.processor, trained.model, card, folder)


def write(job: Job, processor: Any, model: Transformer, card: list[str], folder: Folder) -> str:
    """Write a model with its tokenizer, and the card last; see `export`."""
    text = getattr(processor, "text", processor)
    if not isinstance(text, TextProcessor):
        raise UserError(f"task = {job.task}: only models of text can be exported")
    task = job.build_task()
    outputs = Outputs.of(task, processor)
    special = text.special_names
    ids = {f"{kind}_id": text.tokenizer.token_to_id(token) for kind, token in special.items()}
    if job.model.family == "encoder_decoder":
        ids["decoder_start_token_id"] = text.end_token
    pretrained.save(model, folder, outputs, **ids)
    folder.write("tokenizer.json", _tokenizer(task, text))
    settings = _tokenizer_settings(task, model, special)
    if text.chat_template is not None:  # it writes special tokens, as texts that stay whole
        settings |= {"chat_template": text.chat_template, "split_special_tokens": False}
    folder.write("tokenizer_config.json", json.dumps(settings, indent=2).encode())
    if job.model.family != "encoder":
        generation = {**ids, **_generation_settings(task)}
        folder.write("generation_config.json", json.dumps(generation, indent=2).encode())
    head = hf.exported_head(model, outputs)
    auto = AUTO[head if head != "tokens" else job.model.family]
    usage = usage_lines(task, outputs, auto) if hf.has_architecture(job.model) else INIT_FROM
    at = card.index(USE)
    folder.write("README.md", "\n".join([*card[:at], *usage, *card[at + 1 :]]).encode())
    return auto


def _tokenizer_settings(
    task: Task[Any], model: Transformer, special: dict[str, str]
) -> dict[str, Any]:
    hides = model.head_kind == "tokens" and task.model.family == "encoder"
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": task.model.max_seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        # Users' text holds no control tokens, except a mask, which users may type.
        "split_special_tokens": not hides,
        **({"truncation_side": "left"} if isinstance(task, QuestionAnswering) else {}),
        **({"padding_side": "left"} if task.model.family == "decoder" else {}),
    }


def _generation_settings(task: Task[Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_length": task.model.max_seq_len, "do_sample": False}
    if isinstance(task, Translation):
        settings |= {"num_beams": BEAMS, "length_penalty": 1.0, "early_stopping": False}
    return settings


def _tokenizer(task: Task[Any], text: TextProcessor) -> bytes:
    """tokenizer.json, which puts tokens around and between texts as the task's `encode` does."""
    before, after, between = text.prefix, text.suffix, [text.end_token]
    if task.model.family == "decoder":
        before, after = [text.end_token, *text.opening], []  # a text begins after an end token
    elif not isinstance(task, ExtractiveQuestionAnswering | QuestionAnswering):
        return text.tokenizer_file()
    names = {i: str(text.tokenizer.id_to_token(i)) for i in {*before, *after, *between}}
    first, middle, last = (
        [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in part]
        for part in (before, between, after)
    )
    one, other = ({"Sequence": {"id": each, "type_id": 0}} for each in "AB")
    content = json.loads(text.tokenizer_file())
    # As JSON: the library's template strings cannot hold every token's name.
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*first, one, *last],
        "pair": [*first, one, *middle, other, *last],
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for i, n in names.items()},
    }
    return json.dumps(content, ensure_ascii=False).encode()
