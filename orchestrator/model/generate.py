"""Generation of tokens with a cache: greedy, by sampling, and by beam search."""

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
    top_p: float = 1.0  # nucleus sampling, Holtzman et al. 2020
    repetition_penalty: float = 1.0  # see `penalised`; 1: none
    seed: int | None = None

    def generator(self) -> torch.Generator:
        """A generator of random numbers by the seed, or by the system's entropy without one."""
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
    """Yield up to `max_tokens` tokens that continue `prompt`, and stop before `end_token`.

    Raises:
        ValueError: if the prompt is empty or, with `max_tokens`, longer than `max_seq_len`.
    """
    if not prompt:
        raise ValueError("the prompt must have at least one token")
    if len(prompt) + max_tokens > model.config.max_seq_len:
        raise ValueError(
            f"{len(prompt)} prompt tokens + {max_tokens} do not fit max_seq_len = "
            f"{model.config.max_seq_len}"
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
    """Yield the next token of each sequence, up to `max_tokens` times or until all have ended.

    Prompts of different lengths are padded on the left, and the cache's `real_BT` marks the
    padding. A sequence that has ended is continued with `end_token`.
    """
    random = sampling.generator()
    sequences = prompts_BT.tolist()
    if cache.real_BT is not None:
        real = cache.real_BT[:, : prompts_BT.shape[1]].tolist()
        sequences = [
            [token for token, is_real in zip(*row, strict=True) if is_real]
            for row in zip(sequences, real, strict=True)
        ]
    ended = [False] * len(sequences)
    positions_BT = prompt_positions(cache, prompts_BT)
    tokens_BT = prompts_BT
    for _ in range(max_tokens):
        logits_BV = model(tokens_BT, cache=cache, positions_BT=positions_BT)[:, -1].float().cpu()
        next_tokens = []
        for i, logits_V in enumerate(logits_BV):
            token = end_token if ended[i] else sample(logits_V, sampling, random, sequences[i])
            sequences[i].append(token)
            next_tokens.append(token)
            ended[i] = token == end_token
        yield next_tokens
        if all(ended):
            return
        tokens_BT = torch.tensor(next_tokens, device=prompts_BT.device)[:, None]
        if positions_BT is not None:
            positions_BT = positions_BT[:, -1:] + 1


def sample(
    logits_V: Tensor,
    sampling: Sampling,
    random: torch.Generator,
    sequence: list[int] | None = None,
) -> int:
    """Draw one token from float logits (V,). `sequence` has the tokens before it."""
    if sampling.repetition_penalty != 1.0 and sequence:
        logits_V = penalised(logits_V, torch.tensor(sequence), sampling.repetition_penalty)
    if sampling.temperature < 1e-6:  # dividing by less overflows float32
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


def penalised(logits_V: Tensor, tokens_T: Tensor, penalty: float) -> Tensor:
    """Logits (V,) in which those of `tokens_T`, int64, are lower: divided by the penalty if
    positive, else multiplied. Keskar et al. 2019, CTRL."""
    logits_T = logits_V[tokens_T]
    lower_T = torch.where(logits_T > 0, logits_T / penalty, logits_T * penalty)
    return logits_V.scatter(0, tokens_T, lower_T)


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
    """The best continuation of each sequence that beam search finds, without `end_token`.

    The score of a hypothesis is the sum of its tokens' log-probabilities, with the end token,
    divided by their number to the power of `length_penalty`. The search of a sequence is done when
    `num_beams` hypotheses have ended, and the best open one scores no better than the worst ended
    one.
    """
    batch, device = len(prompts_BT), prompts_BT.device
    cache.reorder(torch.arange(batch, device=device).repeat_interleave(num_beams))
    tokens_NT = prompts_BT.repeat_interleave(num_beams, dim=0)  # N = B x beams
    positions_NT = prompt_positions(cache, tokens_NT)
    scores_BK = torch.full((batch, num_beams), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0  # before the first token all beams are equal: only one counts
    beams: list[list[list[int]]] = [[[] for _ in range(num_beams)] for _ in range(batch)]
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
    done = [False] * batch
    for length in range(1, max_tokens + 1):
        logits_NV = model(tokens_NT, cache=cache, positions_BT=positions_NT)[:, -1].float()
        logits_BKV = logits_NV.log_softmax(-1).unflatten(0, (batch, num_beams))
        vocab_size = logits_BKV.shape[-1]
        totals = (scores_BK[:, :, None] + logits_BKV).flatten(1)
        # Twice as many candidates as beams: if each beam ends, as many still remain open.
        best, indices = totals.topk(min(2 * num_beams, totals.shape[1]))
        rows, tokens = [], []
        for b in range(batch):
            open_beams: list[tuple[float, int, int]] = []
            ranked = zip(best[b].tolist(), indices[b].tolist(), strict=True)
            for rank, (total, index) in enumerate(ranked):
                beam, token = divmod(index, vocab_size)
                if token != end_token:
                    open_beams.append((total, beam, token))
                elif rank < num_beams and not done[b]:
                    ended[b].append((total / length**length_penalty, beams[b][beam]))
            open_beams = open_beams[:num_beams]
            open_beams += [(-torch.inf, 0, end_token)] * (num_beams - len(open_beams))
            beams[b] = [[*beams[b][beam], token] for _, beam, token in open_beams]
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
        if not done[b]:  # beams that reached max_tokens count too
            for score, tokens in zip(scores_BK[b].tolist(), beams[b], strict=True):
                ended[b].append((score / max_tokens**length_penalty, tokens))
    return [max(hypotheses, key=lambda each: each[0])[1] for hypotheses in ended]


def prompt_positions(cache: Cache, prompts_BT: Tensor) -> Tensor | None:
    """The position of each token in prompts padded on the left, int64 (B, T); None if the cache has
    no padding."""
    if cache.real_BT is None:
        return None
    real_BT = cache.real_BT[:, : prompts_BT.shape[1]]
    return (real_BT.long().cumsum(1) - 1).clamp(min=0)


def device_of(model: Transformer) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device
