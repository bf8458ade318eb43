"""Turning next-token logits into text: greedy, sampled and by beam search, with a cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.model.transformer import Cache, Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the most probable one."""

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # what is there already: positive logits are divided by it
    seed: int | None = None

    def generator(self) -> torch.Generator:
        random = torch.Generator()
        if self.seed is None:
            random.seed()
        else:
            random.manual_seed(self.seed)
        return random


GREEDY = Sampling(temperature=0.0)


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
    prompts_BT = torch.tensor([prompt], device=device_of(model))
    cache = model.new_cache(batch=1, capacity=len(prompt) + max_tokens)
    for tokens in generate_batch(model, cache, prompts_BT, max_tokens, sampling, end_token):
        if tokens[0] == end_token:
            return
        yield tokens[0]


@torch.inference_mode()
def generate_batch(
    model: Transformer,
    cache: Cache,
    prompts_BT: Tensor,
    max_tokens: int,
    sampling: Sampling,
    end_token: int,
) -> Iterator[list[int]]:
    """Yield one more token of each sequence, up to `max_tokens` times or until all have ended.

    Prompts of several lengths are padded on the left, and the cache knows where. A sequence that
    has ended goes on with `end_token`.
    """
    random = sampling.generator()
    said = prompts_BT.tolist()
    if cache.real_BT is not None:
        real = cache.real_BT[:, : prompts_BT.shape[1]].tolist()
        said = [[t for t, r in zip(*row, strict=True) if r] for row in zip(said, real, strict=True)]
    ended = [False] * len(said)
    positions_BT = prompt_positions(cache, prompts_BT)
    tokens_BT = prompts_BT
    for _ in range(max_tokens):
        logits_BV = model(tokens_BT, cache=cache, positions_BT=positions_BT)[:, -1].float().cpu()
        chosen = []
        for i, logits_V in enumerate(logits_BV):
            token = end_token if ended[i] else sample(logits_V, sampling, random, said[i])
            said[i].append(token)
            chosen.append(token)
            ended[i] = token == end_token
        yield chosen
        if all(ended):
            return
        tokens_BT = torch.tensor(chosen, device=prompts_BT.device)[:, None]
        if positions_BT is not None:
            positions_BT = positions_BT[:, -1:] + 1


def sample(
    logits_V: Tensor, sampling: Sampling, random: torch.Generator, said: list[int] | None = None
) -> int:
    """Draw one token from float logits (V,) after the tokens `said`."""
    if sampling.repetition_penalty != 1.0 and said:
        logits_V = penalised(logits_V, torch.tensor(said), sampling.repetition_penalty)
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


def penalised(logits_V: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Logits of what was said already made smaller. Keskar et al. 2019, CTRL."""
    there = logits_V[said]
    return logits_V.scatter(0, said, torch.where(there > 0, there / penalty, there * penalty))


@torch.inference_mode()
def beam_search(
    model: Transformer,
    cache: Cache,
    prompts_BT: Tensor,
    max_tokens: int,
    num_beams: int,
    end_token: int,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """The most probable continuation of each sequence, without `end_token`, as far as found.

    A hypothesis is scored by the sum of its tokens' log-probabilities, the end included, divided by
    their number to the power of `length_penalty`. A sequence is finished once `num_beams`
    hypotheses have ended and the best one still open scores no better than the worst of them.
    """
    batch, device = len(prompts_BT), prompts_BT.device
    cache.reorder(torch.arange(batch, device=device).repeat_interleave(num_beams))
    tokens_NT = prompts_BT.repeat_interleave(num_beams, dim=0)  # N = B x beams
    positions_NT = prompt_positions(cache, tokens_NT)
    scores_BK = torch.full((batch, num_beams), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0  # the beams are all the same before the first token
    said: list[list[list[int]]] = [[[] for _ in range(num_beams)] for _ in range(batch)]
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
    done = [False] * batch
    for length in range(1, max_tokens + 1):
        logits_NV = model(tokens_NT, cache=cache, positions_BT=positions_NT)[:, -1].float()
        logits_BKV = logits_NV.log_softmax(-1).unflatten(0, (batch, num_beams))
        vocab_size = logits_BKV.shape[-1]
        totals = (scores_BK[:, :, None] + logits_BKV).flatten(1)
        # Twice as many as beams: should half of them end, enough are left to go on.
        best, at = totals.topk(min(2 * num_beams, totals.shape[1]))
        rows, tokens = [], []
        for b in range(batch):
            open_beams: list[tuple[float, int, int]] = []
            ranked = zip(best[b].tolist(), at[b].tolist(), strict=True)
            for rank, (total, index) in enumerate(ranked):
                beam, token = divmod(index, vocab_size)
                if token != end_token:
                    open_beams.append((total, beam, token))
                elif rank < num_beams and not done[b]:
                    ended[b].append((total / length**length_penalty, said[b][beam]))
            open_beams = open_beams[:num_beams]
            open_beams += [(-torch.inf, 0, end_token)] * (num_beams - len(open_beams))
            said[b] = [[*said[b][beam], token] for _, beam, token in open_beams]
            scores_BK[b] = torch.tensor([total for total, *_ in open_beams])
            rows += [b * num_beams + beam for _, beam, _ in open_beams]
            tokens += [token for *_, token in open_beams]
            ended[b] = sorted(ended[b], key=lambda each: -each[0])[:num_beams]
            best_open = open_beams[0][0] / length**length_penalty
            done[b] |= len(ended[b]) == num_beams and ended[b][-1][0] >= best_open
        if all(done):
            break
        cache.reorder(torch.tensor(rows, device=device))
        tokens_NT = torch.tensor(tokens, device=device)[:, None]
        if positions_NT is not None:
            positions_NT = positions_NT[rows, -1:] + 1
    for b in range(batch):
        if not done[b]:  # what is still open counts as well
            for score, tokens in zip(scores_BK[b].tolist(), said[b], strict=True):
                ended[b].append((score / max_tokens**length_penalty, tokens))
    return [max(hypotheses, key=lambda each: each[0])[1] for hypotheses in ended]


def prompt_positions(cache: Cache, prompts_BT: Tensor) -> Tensor | None:
    """Where the tokens of prompts stand that are padded on the left; None where none is padded."""
    if cache.real_BT is None:
        return None
    real_BT = cache.real_BT[:, : prompts_BT.shape[1]]
    return (real_BT.long().cumsum(1) - 1).clamp(min=0)


def device_of(model: Transformer) -> torch.device:
    return next(model.parameters()).device
