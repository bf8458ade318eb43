"""The next tokens of many sequences at once, each as `model/generate.sample` draws it alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.infer.generation import Token
from orchestrator.model.generate import Sampling


@dataclass(frozen=True)
class Draw:
    """How a row's token is drawn. `seen_V` marks the tokens before it, if there is a repetition
    penalty."""

    sampling: Sampling
    random: torch.Generator
    seen_V: Tensor | None = None


def sample_rows(logits_NV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """A token for each row of float logits, int64 (N,).

    Each operation works on rows alone, and they are those of `sample`, in its order.
    """
    logits_NV = _penalised(logits_NV, draws)
    tokens_N = logits_NV.argmax(-1)
    drawn = [i for i, draw in enumerate(draws) if draw.sampling.temperature >= 1e-6]
    if not drawn:
        return tokens_N
    samplings = [draws[i].sampling for i in drawn]
    logits_NV = logits_NV[drawn]
    temperature_N1 = _column([each.temperature for each in samplings], logits_NV)
    logits_NV = (logits_NV - logits_NV.amax(-1, keepdim=True)) / temperature_N1
    logits_NV = _cut_top_p(_cut_top_k(logits_NV, samplings), samplings)
    # torch.multinomial's way: the largest of probability / exponential random number.
    random_NV = torch.empty(logits_NV.shape)
    for row_V, i in zip(random_NV, drawn, strict=True):
        row_V.exponential_(generator=draws[i].random)
    tokens_N[drawn] = (logits_NV.softmax(-1) / random_NV.to(logits_NV.device)).argmax(-1)
    return tokens_N


def _penalised(logits_NV: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [i for i, draw in enumerate(draws) if draw.seen_V is not None]
    if not rows:
        return logits_NV
    seen_MV = torch.stack([draw.seen_V for draw in draws if draw.seen_V is not None])
    penalty_M1 = _column([draws[i].sampling.repetition_penalty for i in rows], logits_NV)
    logits_MV = logits_NV[rows]
    lower_MV = torch.where(logits_MV > 0, logits_MV / penalty_M1, logits_MV * penalty_M1)
    penalised_NV = logits_NV.clone()
    penalised_NV[rows] = torch.where(seen_MV, lower_MV, logits_MV)
    return penalised_NV


def _cut_top_k(logits_NV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    vocab_size = logits_NV.shape[1]
    rows = [i for i, each in enumerate(samplings) if 0 < each.top_k < vocab_size]
    if not rows:
        return logits_NV
    ks = [samplings[i].top_k for i in rows]
    best_MK = logits_NV[rows].topk(max(ks)).values
    threshold_N1 = logits_NV.new_full((len(samplings), 1), -torch.inf)
    threshold_N1[rows] = best_MK.gather(1, torch.tensor(ks, device=best_MK.device)[:, None] - 1)
    return logits_NV.masked_fill(logits_NV < threshold_N1, -torch.inf)


def _cut_top_p(logits_NV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    rows = [i for i, each in enumerate(samplings) if each.top_p < 1.0]
    if not rows:
        return logits_NV
    sorted_MV, order_MV = logits_NV[rows].sort(descending=True)
    mass_MV = sorted_MV.softmax(-1)
    top_p_M1 = _column([samplings[i].top_p for i in rows], logits_NV)
    outside_MV = mass_MV.cumsum(-1) - mass_MV >= top_p_M1
    outside_MV[:, 0] = False
    sorted_MV = sorted_MV.masked_fill(outside_MV, -torch.inf)
    cut_NV = logits_NV.clone()
    cut_NV[rows] = torch.empty_like(sorted_MV).scatter_(1, order_MV, sorted_MV)
    return cut_NV


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def tokens_with_logprobs(logits_NV: Tensor, tokens: list[int], top: int) -> list[Token]:
    """Tokens with their log-probabilities by float logits (N, V), and the `top` likeliest ones."""
    logprobs_NV = logits_NV.log_softmax(-1)
    tokens_N1 = torch.tensor(tokens, device=logits_NV.device)[:, None]
    own = logprobs_NV.gather(1, tokens_N1)[:, 0].tolist()
    greedy = logits_NV.argmax(-1).tolist()
    best_NK, ids_NK = logprobs_NV.topk(min(top, logits_NV.shape[1]))
    ranked = zip(ids_NK.tolist(), best_NK.tolist(), strict=True)
    return [
        Token(token, logprob, tuple(zip(ids, best, strict=True)), token == likeliest)
        for token, logprob, likeliest, (ids, best) in zip(tokens, own, greedy, ranked, strict=True)
    ]
