"""What several unit tests share."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import Transformer

settings.register_profile("unit", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("unit")
torch.set_num_threads(1)  # tensors this small only wait for one another's threads

MakeModel = Callable[..., Transformer]


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    """The sizes of a tiny Transformer."""

    def make(**config: object) -> ModelConfig:
        tiny = {"num_layers": 2, "d_model": 16, "num_heads": 4, "max_seq_len": 12}
        return ModelConfig.model_validate({**tiny, **config})

    return make


@pytest.fixture
def make_model(make_config: Callable[..., ModelConfig]) -> MakeModel:
    """Builds tiny Transformers with random weights: as new, their blocks write nothing."""

    def make(vocab_size: int = 11, seed: int = 0, **config: object) -> Transformer:
        model = Transformer(make_config(**config), vocab_size)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5, generator=random)
        return model.eval()

    return make
