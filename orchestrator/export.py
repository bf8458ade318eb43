"""A finished training as Hugging Face's libraries load it, and other jobs of ours: weights,
tokenizer and a card."""

import json

from orchestrator import pretrained
from orchestrator.artifact import Evaluation, PreparedData, Training
from orchestrator.checkpoint import load_weights
from orchestrator.errors import UserError
from orchestrator.fit import load_processor
from orchestrator.folder import Folder
from orchestrator.job import Job
from orchestrator.model import hf
from orchestrator.processors.text import TextProcessor

AUTO = {  # the class to load it with, by head and family
    "label": "AutoModelForSequenceClassification",
    "each_token": "AutoModelForTokenClassification",
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
    if not hf.is_theirs(model):
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
    text = getattr(processor, "text", processor)
    if not isinstance(text, TextProcessor):
        raise UserError(f"task = {job.task}: only models of text can be exported")
    labels = getattr(processor, "labels", None)
    model = task.build_model(processor.vocab_size, processor.num_outputs)
    load_weights(model, training.checkpoint())

    end = text.end_token
    token_ids: dict[str, int | None] = {"pad_token_id": end, "eos_token_id": end}
    token_ids["bos_token_id"] = end  # a text begins after the end of another
    if text.mask_token is not None:
        token_ids["mask_token_id"] = text.mask_token
    if job.model.family == "encoder_decoder":
        token_ids["decoder_start_token_id"] = end
    pretrained.save(model, folder, labels, **token_ids)
    folder.write("tokenizer.json", text.tokenizer_file())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{kind}_token": text.end for kind in ("bos", "eos", "pad", "unk")},
        **({"mask_token": text.mask} if text.mask is not None else {}),
        "model_max_length": job.model.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    folder.write("tokenizer_config.json", json.dumps(settings, indent=2).encode())
    auto = AUTO[model.head_kind if model.head_kind != "tokens" else job.model.family]
    folder.write("README.md", _card(job, training, evaluation, auto).encode())
    return auto


INIT_FROM = [
    "No architecture of `transformers` is this model. A job of the orchestrator begins with it by",
    "",
    "```yaml",
    "model: {init_from: PATH}",
    "```",
]


def _python(auto: str) -> list[str]:
    return [
        "```python",
        f"from transformers import AutoTokenizer, {auto}",
        "",
        f'model = {auto}.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        "```",
    ]


def _card(job: Job, training: Training, evaluation: Evaluation | None, auto: str) -> str:
    """What it is, how good it is, and how to load it."""
    lines = [
        "---",
        "library_name: transformers",
        "---",
        f"# {job.name}",
        "",
        f"A Transformer ({job.model.family}) for `{job.task}` after {training.steps:,} steps.",
        "",
        *(_python(auto) if hf.is_theirs(job.model) else INIT_FROM),
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
    return "\n".join([*lines, "The job that made it:", "", "```json", config, "```", ""])
