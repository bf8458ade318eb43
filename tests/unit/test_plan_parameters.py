"""Parameters by part, and the micro-batches of a worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.data.shards import write_shard
from orchestrator.job.job import Job
from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import Transformer
from orchestrator.plan.parameters import count, count_model
from orchestrator.plan.shapes import Shape, shapes
from orchestrator.plan.speed import step_flops
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder

SMALL = {"num_layers": 2, "d_model": 32, "num_heads": 4, "max_seq_len": 64}


def make(task: str, **sections: Any) -> Job:
    model = {**SMALL, **sections.pop("model", {})}
    return Job.model_validate(
        {"name": "a", "task": task, "data": {"source": "x"}, "model": model, **sections}
    )


@pytest.mark.parametrize("task", ["language_modelling", "text_classification", "translation"])
@pytest.mark.parametrize("tied", [True, False])
def test_parts_add_up_to_the_model(task: str, tied: bool) -> None:
    job = make(task, model={"tie_embeddings": tied})
    counted = count(job, None)
    model = job.build_task().build_model(counted.vocab_size, counted.num_outputs)
    assert counted.total == model.num_parameters() and not counted.exact
    blocks = [m for n, m in model.named_parameters() if ".blocks." in n and m.ndim == 2]
    assert counted.matrices == sum(m.numel() for m in blocks)
    maps = counted.encoder_maps + counted.decoder_maps + counted.memory_maps
    assert maps == counted.matrices
    predicts_tokens = task != "text_classification"
    assert counted.head_maps == (counted.vocab_size * 32 if predicts_tokens else 0)


def counting_operations(model: torch.nn.Module, *args: Any, **kwargs: Any) -> float:
    """The operations of the matrix products in a forward and a backward pass."""
    # In plain operations: the counter does not know the fused kernel of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*args, **kwargs).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_operations_are_those_of_the_matrix_products(family: str) -> None:
    task = "language_modelling" if family == "decoder" else "translation"
    job = make(task, tokenizer={"vocab_size": 300})
    counted = count(job, None)
    model = job.build_task().build_model(300, 1)
    tokens = torch.randint(0, 300, (3, 48))
    sources = {} if family == "decoder" else {"source_BS": tokens[:, :20]}
    shape = Shape(3, source=0 if family == "decoder" else 20, target=48)
    predicted = step_flops(job, counted, shape)
    assert predicted == pytest.approx(counting_operations(model, tokens, **sources), rel=0.01)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    """Rows of 1 to 64 tokens."""
    folder = Folder(str(tmp_path))
    processor = TextProcessor.fit(["abc"], TokenizerConfig(vocab_size=257))
    folder.write(processor.file_name, processor.to_bytes())
    lengths = np.random.default_rng(0).integers(1, 65, 256).astype(np.int32)
    rows = {
        "tokens": np.zeros((256, 64), dtype=np.uint16),
        "tokens_length": lengths,
        "label": np.zeros(256, dtype=np.int32),
    }
    shard = write_shard(folder, "rows.arrow", rows)
    return PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor=processor.file_name,
        splits={split: [shard] for split in ("train", "validation", "test")},
        documents={},
        source_bytes=1,
    ).commit()


def test_prepared_rows_are_as_long_as_they_are(prepared: PreparedData) -> None:
    job = make("text_classification", train={"global_batch_size": 64, "steps": 4})
    found = shapes(job, prepared, workers=1)
    assert found.measured and len(found.steps) == 4
    assert all(sum(shape.rows for shape in step) == 64 for step in found.steps)
    mean = float(np.mean(np.arange(1, 65)))
    assert 64 * mean < found.tokens < 64 * 64 * 0.85  # sorted by length: some padding, not all
    assert found.largest.source <= 64


def test_rows_that_are_not_prepared_are_as_long_as_they_can_be() -> None:
    job = make("text_classification", train={"global_batch_size": 64, "micro_batch_size": 8})
    found = shapes(job, None, workers=2)
    assert not found.measured
    assert found.steps == ((Shape(8, source=64),) * 4,)
    job = make("language_modelling", train={"global_batch_size": 20, "micro_batch_size": 8})
    assert [shape.rows for shape in shapes(job, None, workers=2).steps[0]] == [8, 2]


def test_public_models_have_the_parameters_that_are_published() -> None:
    gpt2 = {
        "size": "base",
        "max_seq_len": 1024,
        "positions": "learned",
        "norm": "layernorm",
        "activation": "gelu",
        "bias": True,
    }
    llama = {
        "num_layers": 32,
        "d_model": 4096,
        "num_heads": 32,
        "num_kv_heads": 8,
        "d_ff": 14336,
        "activation": "swiglu",
        "tie_embeddings": False,
    }
    for settings, vocabulary, published in (
        (gpt2, 50_257, 124_439_808),
        (llama, 128_256, 8_030_261_248),
    ):
        with torch.device("meta"):
            model = Transformer(ModelConfig.model_validate(settings), vocabulary)
        assert count_model(model, vocabulary, 1).total == published
