"""The model that all sides of `benchmarks/serve.py` serve: one export, which each of them loads."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.evaluate.card import USE
from orchestrator.evaluate.export import write
from orchestrator.job.job import Job
from orchestrator.model.generate import GREEDY, generate
from orchestrator.model.transformer import TokenHead, Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.pretrained.tokenizer import read_tokenizer
from orchestrator.processors.text import TextProcessor
from orchestrator.storage.folder import Folder

CONTEXT = 512
SLOTS = 32  # as many requests at once as the most clients
# A decoder of Llama's architecture, which transformers and CTranslate2 take.
MODEL = {
    "num_layers": 6,
    "d_model": 256,
    "num_heads": 4,
    "activation": "swiglu",
    "max_seq_len": CONTEXT,
    "tie_embeddings": False,
}
VOCABULARY = 8192
TEXT_BYTES = 3_000_000  # of Python's standard library, for the tokenizer
EXPORT, CTRANSLATE2 = "export", "ctranslate2"  # folders


def job_of(model: dict[str, Any], vocabulary: int) -> Job:
    """The job of which the model is."""
    return Job.model_validate(
        {
            "name": "benchmark",
            "task": "language_modelling",
            "data": {"source": "python-stdlib"},
            "tokenizer": {"vocab_size": vocabulary},
            "model": model,
            "serve": {"slots": SLOTS, "max_queued_requests": 1000},
        }
    )


def make(folder: Path, model: dict[str, Any], vocabulary: int) -> None:
    """Write the export."""
    job = job_of(model, vocabulary)
    processor = TextProcessor.fit(_texts(), job.tokenizer)
    torch.manual_seed(0)
    built = job.build_task().build_model(processor.vocab_size, 1).eval()
    _set_weights(built, processor)
    write(job, processor, built, [USE], Folder(str(folder / EXPORT)))


def convert(folder: Path) -> None:
    """Write the export's weights in CTranslate2's format, by its own command.

    Raises:
        RuntimeError: if that fails.
    """
    command = Path(sys.executable).parent / "ct2-transformers-converter"
    arguments = ["--model", str(folder / EXPORT), "--output_dir", str(folder / CTRANSLATE2)]
    done = subprocess.run([command, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command.name} failed:\n{done.stderr[-3000:]}")


def load(folder: Path) -> tuple[TextProcessor, Transformer]:
    """The exported model, as a job with `model.init_from` gets it."""
    export = Folder(str(folder / EXPORT))
    config, rows = pretrained.read_config(export)
    model = Transformer(config, rows)
    pretrained.load(model, export)
    return read_tokenizer(export, rows), model.eval()


def greedy(folder: Path, prompts: list[list[int]], max_tokens: int) -> list[str]:
    """What the model adds to each prompt, computed alone."""
    processor, model = load(folder)
    return [
        processor.decode(list(generate(model, prompt, max_tokens, GREEDY, processor.end_token)))
        for prompt in prompts
    ]


@torch.no_grad()
def _set_weights(model: Transformer, processor: TextProcessor) -> None:
    """Random weights with which the tokens before matter. No text ends before `max_tokens`, and
    each token is text of its own, so that a stream has an event for each."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    assert model.tokens is not None and isinstance(model.head, TokenHead)
    model.tokens.weight.normal_()
    assert isinstance(model.head.logits, nn.Linear)
    texts = [processor.decode([token]) for token in range(processor.vocab_size)]
    unused = [i for i, text in enumerate(texts) if not text or "\ufffd" in text]
    model.head.logits.weight[unused] = 0  # a logit of 0 is never the highest of thousands


def _texts() -> list[str]:
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(path.read_text(errors="replace"))
        size += len(texts[-1])
        if size > TEXT_BYTES:
            break
    return texts
