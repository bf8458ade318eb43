"""Turning next-token logits into text: greedy and sampled continuation with a KV cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.model.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the most probable one."""

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    seed: int | None = None


@torch.inference_mode()
def generate(
    model: Transformer, prompt: list[int], max_tokens: int, sampling: Sampling, end_token: int
) -> Iterator[int]:
    """Yield up to `max_tokens` tokens that continue `prompt`; stops before `end_token`.

    Raises:
        ValueError: where the prompt is empty or, with `max_tokens`, longer than `max_seq_len`.
    """
    if not prompt:
        raise ValueError("the prompt must hold at least one token")
    if len(prompt) + max_tokens > model.config.max_seq_len:
        raise ValueError(
            f"{len(prompt)} prompt tokens + {max_tokens} do not fit {model.config.max_seq_len}"
        )
    device = model.embedding.tokens.weight.device
    random = torch.Generator()
    if sampling.seed is None:
        random.seed()
    else:
        random.manual_seed(sampling.seed)
    cache = model.new_cache(batch=1, capacity=len(prompt) + max_tokens)
    tokens_BT = torch.tensor([prompt], device=device)
    for _ in range(max_tokens):
        logits_V = model(tokens_BT, cache)[0, -1].float().cpu()
        token = sample(logits_V, sampling, random)
        if token == end_token:
            return
        yield token
        tokens_BT = torch.tensor([[token]], device=device)


def sample(logits_V: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """Draw one token from float logits (V,)."""
    if sampling.temperature < 1e-6:  # float32 has no room for what is divided by less
        return int(logits_V.argmax())
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    logits_V = (logits_V - logits_V.max()) / sampling.temperature
    if 0 < sampling.top_k < len(logits_V):
        threshold = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, -torch.inf)
    if sampling.top_p < 1.0:
        sorted_V, order_V = logits_V.sort(descending=True)
        mass_V = sorted_V.softmax(-1)
        # A token stays while the mass before it is below top_p, so at least one always does.
        outside_V = mass_V.cumsum(-1) - mass_V >= sampling.top_p
        outside_V[0] = False
        logits_V = logits_V.masked_fill(outside_V[order_V.argsort()], -torch.inf)
    return int(torch.multinomial(logits_V.softmax(-1), 1, generator=random))
