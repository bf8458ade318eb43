"""A tiny random model behind the endpoint, for requests from clients."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import uvicorn
from fastapi import FastAPI
from tokenizers import AddedToken

from orchestrator.infer.generation import Generator
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.serve.app import make_app
from orchestrator.serve.text_engine import TextEngine

CONTEXT = 64
TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on\n"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
JOB = Job.model_validate(
    {
        "name": "tiny",
        "task": "language_modelling",
        "data": {"source": "python-stdlib"},
        "tokenizer": {"vocab_size": 300},
        "model": {
            "num_layers": 1,
            "d_model": 16,
            "num_heads": 2,
            "max_seq_len": CONTEXT,
            "tie_embeddings": False,
        },
        "serve": {"max_tokens": 6},
    }
)
PLAIN = TextProcessor.fit([TEXT] * 20, TokenizerConfig(vocab_size=300))


def chat_processor() -> TextProcessor:
    """A tokenizer with a chat template, as an imported model has it."""
    tokenizer = TextProcessor.from_bytes(PLAIN.to_bytes()).tokenizer
    names = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return TextProcessor(tokenizer, "<|im_end|>", 0, {"eos_token": "<|im_end|>"}, TEMPLATE)


def trained_model(processor: TextProcessor = PLAIN) -> TrainedModel:
    torch.manual_seed(1)
    task = JOB.build_task()
    model = task.build_model(processor.vocab_size, 1).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # large, so that every token before matters
            torch.nn.init.normal_(parameter, std=0.3)
    return TrainedModel(task, processor, model)


def tiny_engine(processor: TextProcessor = PLAIN, generator: Generator | None = None) -> TextEngine:
    return TextEngine(JOB, trained_model(processor), generator=generator)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The URL of an application behind a real server on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def served(engine: TextEngine) -> Iterator[str]:
    with listening(make_app(JOB.name, engine)) as url:
        yield url


@torch.inference_mode()
def log_softmax(tokens: list[int]) -> torch.Tensor:
    """The model's own log-probabilities of what follows each token, (T, V)."""
    logits_BTV: torch.Tensor = trained_model().model(torch.tensor([tokens]))
    return logits_BTV[0].log_softmax(-1)
