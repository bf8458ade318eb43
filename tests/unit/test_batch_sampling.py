"""Sampling of many rows at once: each row's token is the one that it would get alone."""

import math
import random

import pytest
import torch

from orchestrator.infer.batch_sampling import Draw, sample_rows, tokens_with_logprobs
from orchestrator.infer.row_linear import ROW_COUNTS, RowLinear
from orchestrator.model.generate import Sampling, sample

VOCAB = 300


def random_sampling(chance: random.Random) -> Sampling:
    return Sampling(
        temperature=chance.choice([0.0, 1e-9, 0.3, 0.8, 1.0, 2.5]),
        top_k=chance.choice([0, 0, 1, 5, 50, VOCAB, 1000]),
        top_p=chance.choice([1.0, 1.0, 0.0, 0.3, 0.9, 0.999]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.3, 0.7]),
        seed=chance.randrange(1000),
    )


@pytest.mark.parametrize("seed", range(5))
def test_rows_get_the_tokens_that_they_get_alone(seed: int) -> None:
    chance, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    samplings = [random_sampling(chance) for _ in range(chance.randint(1, 33))]
    histories = [[chance.randrange(VOCAB) for _ in range(9)] for _ in samplings]
    alone = [sampling.generator() for sampling in samplings]
    together = [sampling.generator() for sampling in samplings]
    for _ in range(20):
        logits_NV = torch.randn(len(samplings), VOCAB, generator=noise) * 3
        seen_NV = [torch.zeros(VOCAB, dtype=torch.bool) for _ in samplings]
        for seen_V, history in zip(seen_NV, histories, strict=True):
            seen_V[history] = True
        draws = [
            Draw(sampling, random, seen_V if sampling.repetition_penalty != 1.0 else None)
            for sampling, random, seen_V in zip(samplings, together, seen_NV, strict=True)
        ]
        expected = [
            sample(logits_V, sampling, random, history)
            for logits_V, sampling, random, history in zip(
                logits_NV, samplings, alone, histories, strict=True
            )
        ]
        assert sample_rows(logits_NV, draws).tolist() == expected
        for history, token in zip(histories, expected, strict=True):
            history.append(token)


def test_greedy_rows_draw_no_random_numbers() -> None:
    randoms = [torch.Generator().manual_seed(1) for _ in range(2)]
    states = [random.get_state() for random in randoms]
    draws = [Draw(Sampling(t), r) for t, r in zip((0.0, 1.0), randoms, strict=True)]
    sample_rows(torch.randn(2, 9), draws)
    assert torch.equal(randoms[0].get_state(), states[0])
    assert not torch.equal(randoms[1].get_state(), states[1])


def test_the_likeliest_tokens_come_best_first() -> None:
    logits_NV = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log() + 7
    first, second = tokens_with_logprobs(logits_NV, [2, 2], top=2)
    assert (first.id, first.is_greedy, second.is_greedy) == (2, False, True)
    assert first.logprob == pytest.approx(math.log(0.3), abs=1e-6)
    assert [token for token, _ in first.top] == [0, 2] and second.top[0][0] == 2


def test_no_tokens_have_no_log_probabilities() -> None:
    assert tokens_with_logprobs(torch.empty(0, 5), [], top=2) == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 50), (384, 384), (1536, 384), (2048, 96)])
def test_a_row_of_a_linear_map_has_the_same_bits_in_any_company(
    inputs: int, outputs: int, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        linear = torch.nn.Linear(inputs, outputs)
        rows = RowLinear(linear.weight, linear.bias)
        x_ND = torch.randn(ROW_COUNTS[-1], inputs)
        expected_NF = rows(x_ND)
        torch.testing.assert_close(expected_NF, linear(x_ND))
        for count in ROW_COUNTS:
            chosen_N = torch.randperm(len(x_ND))[:count]
            assert torch.equal(rows(x_ND[chosen_N]), expected_NF[chosen_N]), count
    finally:
        torch.set_num_threads(before)
