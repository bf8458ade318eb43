"""Generation: which tokens come, and when it stops."""

import math
from collections import Counter

import pytest
import torch

from orchestrator.model.generate import Sampling, generate, sample
from orchestrator.model.transformer import Transformer

NO_END = -1
PROMPT = [3, 1, 4]
PROBABILITIES = [0.05, 0.5, 0.15, 0.3]


@pytest.fixture
def model(make_model) -> Transformer:
    return make_model(vocab_size=50, max_seq_len=32, tie_embeddings=False)


def continuation(model: Transformer, sampling: Sampling, end_token: int = NO_END) -> list[int]:
    return list(generate(model, PROMPT, 20, sampling, end_token))


def frequencies(sampling: Sampling, draws: int = 4000) -> list[float]:
    """How often each token of `PROBABILITIES` is drawn."""
    logits = torch.tensor(PROBABILITIES).log() + 5.0
    random = torch.Generator().manual_seed(0)
    counts = Counter(sample(logits, sampling, random) for _ in range(draws))
    return [counts[token] / draws for token in range(len(PROBABILITIES))]


def normalised(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def test_greedy_generation_is_a_chain_of_argmaxes(model: Transformer) -> None:
    seen: set[int] = set()
    for prompt in ([0], [3, 1, 4], [9, 8, 7, 6, 5], [49] * 12):
        tokens = list(prompt)
        for _ in range(20):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        found = list(generate(model, prompt, 20, Sampling(temperature=0.0), NO_END))
        assert found == tokens[len(prompt) :]
        seen.update(found)
    assert len(seen) > 5, "chains that stand still would prove little"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=1, seed=1),
        Sampling(top_p=1e-6, seed=1),
        Sampling(top_p=0.0, seed=1),
        Sampling(temperature=1e-6, seed=1),
        Sampling(temperature=1e-300, seed=1),
    ],
)
def test_sampling_that_leaves_one_token_is_greedy(model: Transformer, sampling: Sampling) -> None:
    assert continuation(model, sampling) == continuation(model, Sampling(temperature=0.0))


def test_the_same_seed_gives_the_same_text(model: Transformer) -> None:
    first = continuation(model, Sampling(temperature=2.0, seed=7))
    torch.manual_seed(123)
    assert continuation(model, Sampling(temperature=2.0, seed=7)) == first


def test_different_seeds_give_different_texts(model: Transformer) -> None:
    texts = {tuple(continuation(model, Sampling(temperature=2.0, seed=s))) for s in range(5)}
    assert len(texts) == 5


def test_sampling_leaves_the_global_generator_alone(model: Transformer) -> None:
    before = torch.get_rng_state()
    continuation(model, Sampling(seed=1))
    continuation(model, Sampling(seed=None))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax_at_that_temperature(temperature: float) -> None:
    expected = normalised([p ** (1 / temperature) for p in PROBABILITIES])
    assert frequencies(Sampling(temperature)) == pytest.approx(expected, abs=0.03)


def test_top_k_keeps_the_k_likeliest_in_their_proportions() -> None:
    expected = normalised([0.0, 0.5, 0.0, 0.3])
    assert frequencies(Sampling(top_k=2)) == pytest.approx(expected, abs=0.03)
    assert frequencies(Sampling(top_k=2))[0] == 0.0


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.4, [0.0, 0.5, 0.0, 0.0]),
        (0.6, [0.0, 0.5, 0.0, 0.3]),
        (0.9, [0.0, 0.5, 0.15, 0.3]),
        (1.0, PROBABILITIES),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_hold_that_mass(top_p: float, kept: list[float]) -> None:
    found = frequencies(Sampling(top_p=top_p))
    assert found == pytest.approx(normalised(kept), abs=0.03)
    assert [f > 0 for f in found] == [k > 0 for k in kept]


def test_generation_stops_before_the_end_token(model: Transformer) -> None:
    whole = continuation(model, Sampling(temperature=0.0))
    end = whole[-1]
    assert continuation(model, Sampling(temperature=0.0), end) == whole[: whole.index(end)]


def test_generation_fills_the_context_to_its_last_place(make_model) -> None:
    model = make_model(max_seq_len=8)
    assert len(list(generate(model, PROMPT, 5, Sampling(seed=0), NO_END))) == 5
    with pytest.raises(ValueError, match=r"3 .*6 .*8"):
        list(generate(model, PROMPT, 6, Sampling(seed=0), NO_END))


def test_an_empty_prompt_raises(model: Transformer) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        list(generate(model, [], 5, Sampling(), NO_END))


def test_a_logit_of_minus_infinity_is_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, 0.0])
    random = torch.Generator().manual_seed(0)
    assert {sample(logits, Sampling(), random) for _ in range(200)} == {1, 2}
