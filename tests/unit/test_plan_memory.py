"""The prediction of memory, compared with what models and trainings really take."""

import itertools
from typing import Any

import pytest
import torch

from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import Transformer
from orchestrator.plan.memory import activation_bytes
from orchestrator.plan.shapes import Shape

ROWS, LENGTH = 3, 40
STYLES: list[dict[str, Any]] = [
    {},
    {"norm": "layernorm", "bias": True, "activation": "gelu", "dropout": 0.1},
    {"positions": "relative", "activation": "relu"},
    {
        "norm_position": "post",
        "norm": "layernorm",
        "embedding_norm": True,
        "positions": "learned",
    },
    {"activation": "swiglu", "num_kv_heads": 2, "positions": "rotary"},
]
FAMILIES = ("decoder", "encoder", "encoder_decoder")


def saved_bytes(model: Transformer, precision: str) -> int:
    """The bytes that autograd saves in a forward pass, without weights and their bf16 copies."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    weights = [p for p in model.parameters() if p.ndim == 2]
    shapes = {tuple(p.shape) for p in weights} | {tuple(p.mT.shape) for p in weights}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        is_copy = tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes
        if tensor.untyped_storage().data_ptr() not in own and not is_copy:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, model.vocab_size, (ROWS, LENGTH))
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[0, LENGTH // 2 :] = False
    inputs: dict[str, Any] = {"decoder": {}, "encoder": {"real_BT": real}}.get(
        model.config.family, {"source_BS": tokens, "source_real_BS": real}
    )
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        output = model(tokens, **inputs)
        assert output.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "style"), itertools.product(FAMILIES, STYLES))
def test_activations_are_the_tensors_that_autograd_saves(
    family: Any, style: dict[str, Any], precision: str
) -> None:
    sizes = {"num_layers": 3, "d_model": 96, "num_heads": 4, "head_dim": 32, "d_ff": 200}
    config = ModelConfig(family=family, max_seq_len=64, **sizes, **style)
    model = Transformer(config, 37, "label" if family == "encoder" else "tokens", 3)
    shape = Shape(
        ROWS,
        source=0 if family == "decoder" else LENGTH,
        target=0 if family == "encoder" else LENGTH,
    )
    predicted = activation_bytes(config, shape, precision)
    assert predicted == pytest.approx(saved_bytes(model, precision), rel=0.03)
