"""The Transformer against its formulas, and its promises: causality, caching, its size."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError

from orchestrator.model.attention import Attention, AttentionMask, attend
from orchestrator.model.block import FeedForward
from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import Positions, sinusoids
from orchestrator.model.transformer import Transformer

Array = npt.NDArray[np.float64]

NORMS = ("rmsnorm", "layernorm")
POSITIONS = ("rotary", "relative", "learned", "sinusoidal")
ACTIVATIONS = ("gelu", "relu2", "swiglu")


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """With random float64 weights, so that no output is zero and rounding is small."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=random)
    return module.double().eval()


def weight(linear: torch.nn.Module) -> Array:
    return linear.weight.detach().numpy()


def random_tokens(*shape: int, vocab_size: int = 11) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(2))


def unturned(x_TK: Array) -> Array:
    return x_TK


def turned(x_TK: Array) -> Array:
    """RoFormer's rotation: pairs (k, k + K/2) as complex numbers times e^(i position rate)."""
    width = x_TK.shape[1]
    rates = 10_000.0 ** (-2 * np.arange(width // 2) / width)
    spin = np.exp(1j * np.arange(len(x_TK))[:, None] * rates)
    z = (x_TK[:, : width // 2] + 1j * x_TK[:, width // 2 :]) * spin
    return np.concatenate([z.real, z.imag], axis=1)


def attention_by_formula(
    attention: Attention, x_TD: Array, turn: Callable[[Array], Array], causal: bool
) -> Array:
    length, width = x_TD.shape
    head_width = attention.head_width
    query, key, value = (
        x_TD @ weight(linear).T for linear in (attention.query, attention.key, attention.value)
    )
    heads = []
    for start in range(0, width, head_width):
        own = slice(start, start + head_width)
        scores = turn(query[:, own]) @ turn(key[:, own]).T / math.sqrt(head_width)
        if causal:
            scores[np.triu_indices(length, 1)] = -np.inf
        shares = np.exp(scores)
        heads.append(shares / shares.sum(1, keepdims=True) @ value[:, own])
    return np.concatenate(heads, axis=1) @ weight(attention.output).T


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize(("positions", "turn"), [("learned", unturned), ("rotary", turned)])
def test_attention_is_the_formula_written_out(
    positions: str, turn: Callable[[Array], Array], num_heads: int, causal: bool
) -> None:
    config = ModelConfig(d_model=16, num_heads=num_heads, positions=positions, max_seq_len=9)
    attention = randomised(Attention(config))
    x_BTD = torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_BTD = x_BTD / 4
    expected = [attention_by_formula(attention, x_TD, turn, causal) for x_TD in x_BTD.numpy()]
    rotation = None
    if positions == "rotary":
        _, rotation = Positions(config, causal=False)(x_BTD, slice(0, 7))
    found = attention(x_BTD, AttentionMask(causal), rotation)
    np.testing.assert_allclose(found.detach(), expected, atol=1e-5)


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_is_the_formula_written_out(activation: str) -> None:
    layer = randomised(FeedForward(ModelConfig(d_model=8, num_heads=2, activation=activation)))
    x = np.random.default_rng(0).normal(size=(5, 8))
    up = x @ weight(layer.up).T
    if activation == "gelu":
        hidden = gelu(up)
    elif activation == "relu2":
        hidden = np.maximum(up, 0) ** 2
    else:
        gate = x @ weight(layer.gate).T
        hidden = gate / (1 + np.exp(-gate)) * up
    expected = hidden @ weight(layer.output).T
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach(), expected, rtol=1e-9)


def test_sinusoids_are_the_formula_written_out_for_odd_widths_too() -> None:
    for width in (6, 7):
        for position, vector in enumerate(sinusoids(9, width).tolist()):
            for i, value in enumerate(vector):
                angle = position / 10_000 ** ((i - i % 2) / width)
                assert value == pytest.approx([math.sin, math.cos][i % 2](angle), abs=1e-5)


def test_a_new_block_is_the_identity_and_a_random_one_is_not() -> None:
    config = ModelConfig(num_layers=1, d_model=16, num_heads=4)
    block = Transformer(config, 11).decoder.blocks[0]
    x_BTD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x_BTD, AttentionMask()), x_BTD)
    x_BTD = x_BTD.double()
    assert not torch.allclose(randomised(block)(x_BTD, AttentionMask()), x_BTD, atol=0.1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_later_token_never_changes_an_earlier_output(
    make_model, norm: str, positions: str, activation: str
) -> None:
    model = make_model(norm=norm, positions=positions, activation=activation)
    tokens = random_tokens(1, 12)
    others = (tokens + torch.eye(12, dtype=torch.int64)) % 11  # row t differs in token t
    difference = (model(others) - model(tokens)).abs().amax(-1)
    sees_the_change = torch.ones(12, 12, dtype=torch.bool).triu()
    assert (difference[~sees_the_change] <= 1e-5).all()
    assert (difference[sees_the_change] > 1e-3).all()


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("chunks", [[1] * 12, [12], [5, 4, 3], [1, 6, 1, 4], [11, 1]])
def test_cached_logits_equal_uncached_ones_however_the_tokens_are_cut(
    make_model, chunks: list[int], positions: str, tie_embeddings: bool
) -> None:
    model = make_model(positions=positions, tie_embeddings=tie_embeddings)
    tokens = random_tokens(3, 12)
    cache = model.new_cache(batch=3, capacity=12)
    with torch.no_grad():
        parts = [model(chunk, cache=cache) for chunk in tokens.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-4, rtol=1e-4)


def test_relative_positions_prefer_by_distance_alone(make_config) -> None:
    config = make_config(positions="relative", d_model=24, num_heads=3, max_seq_len=300)
    positions = Positions(config, causal=False)
    bias_HTS = positions.attention_bias(0, 300)
    assert bias_HTS is not None and bias_HTS.shape == (3, 300, 300)
    assert torch.equal(bias_HTS[:, 1:, 1:], bias_HTS[:, :-1, :-1])
    first_HS = bias_HTS[:, 0]  # of what comes after: eight of their own, eight that share
    assert [len(head.unique()) for head in first_HS] == [16] * 3
    assert (first_HS[:, 128:] == first_HS[:, -1:]).all()
    assert not torch.equal(bias_HTS[:, 0, 5], bias_HTS[:, 5, 0])
    torch.testing.assert_close(positions.attention_bias(290, 10), bias_HTS[:, 290:])


def test_two_caches_do_not_know_of_each_other(make_model) -> None:
    model = make_model()
    tokens, other = random_tokens(2, 1, 6)
    first, second = (model.new_cache(batch=1, capacity=6) for _ in range(2))
    with torch.no_grad():
        model(other, cache=second)
        model(tokens[:, :3], cache=first)
        torch.testing.assert_close(model(tokens[:, 3:], cache=first), model(tokens)[:, 3:])


def hand_count(config: ModelConfig, vocab_size: int) -> int:
    width, hidden = config.d_model, config.d_ff
    norm = {"rmsnorm": 1, "layernorm": 2}[config.norm] * width
    feed_forward = {"gelu": 2, "relu2": 2, "swiglu": 3}[config.activation] * width * hidden
    tables = {"learned": config.max_seq_len * width, "relative": 32 * config.num_heads}
    positions = tables.get(config.positions, 0)
    head = 0 if config.tie_embeddings else vocab_size * width
    blocks = config.num_layers * (4 * width**2 + feed_forward + 2 * norm)
    return vocab_size * width + positions + blocks + norm + head


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_num_parameters_equals_a_count_by_hand(
    norm: str, positions: str, activation: str, tie_embeddings: bool
) -> None:
    config = ModelConfig(
        num_layers=3,
        d_model=24,
        num_heads=3,
        d_ff=40,
        max_seq_len=10,
        norm=norm,
        positions=positions,
        activation=activation,
        tie_embeddings=tie_embeddings,
    )
    assert Transformer(config, 17).num_parameters() == hand_count(config, 17)


def test_swiglu_costs_as_much_as_the_activations_without_a_gate() -> None:
    sizes = {
        Transformer(
            ModelConfig(d_model=96, num_heads=2, activation=activation), 17
        ).num_parameters()
        for activation in ACTIVATIONS
    }
    assert len(sizes) == 1


def test_dropout_acts_in_training_only(make_model) -> None:
    model, tokens = make_model(dropout=0.5), random_tokens(1, 8)
    torch.testing.assert_close(model(tokens), make_model(dropout=0.0)(tokens))
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(model(tokens), model(tokens))


def test_a_sequence_that_is_too_long_raises_with_both_lengths(make_model) -> None:
    model = make_model(max_seq_len=12)
    with pytest.raises(ValueError, match=r"13 .*12"):
        model(random_tokens(1, 13))


def test_a_cached_sequence_that_grows_too_long_raises_with_both_lengths(make_model) -> None:
    model = make_model(max_seq_len=12)
    cache = model.new_cache(batch=1, capacity=12)
    model(random_tokens(1, 12), cache=cache)
    with pytest.raises(ValueError, match=r"13 .*12"):
        model(random_tokens(1, 1), cache=cache)


def test_a_full_cache_raises_instead_of_forgetting_the_next_token(make_model) -> None:
    model = make_model(max_seq_len=12)
    cache = model.new_cache(batch=1, capacity=4)
    model(random_tokens(1, 4), cache=cache)
    with pytest.raises(ValueError):
        model(random_tokens(1, 1), cache=cache)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"d_model": 10, "num_heads": 4}, ["num_heads = 4", "d_model 10"]),
        ({"d_model": 12, "num_heads": 4, "positions": "rotary"}, ["12 / 4 = 3", "even"]),
        ({"norm": "batchnorm"}, ["norm", "batchnorm"]),
        ({"num_layers": 0}, ["num_layers", "input_value=0"]),
        ({"dropout": 1.0}, ["dropout", "input_value=1.0"]),
        ({"dropout": math.nan}, ["dropout", "nan"]),
        ({"layers": 4}, ["layers", "not permitted"]),
    ],
)
def test_an_invalid_config_is_rejected_naming_the_values(
    wrong: dict[str, object], named: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(wrong)
    assert all(word in str(caught.value) for word in named)


def test_an_odd_head_width_is_fine_where_nothing_is_rotated() -> None:
    config = ModelConfig(d_model=12, num_heads=4, positions="learned", max_seq_len=8)
    assert Transformer(config, 11)(random_tokens(1, 8)).shape == (1, 8, 11)


@pytest.mark.parametrize("start", [0, 3])
def test_short_attention_in_bf16_is_the_fused_one(start: int) -> None:
    """On CPUs a plain formula takes the place of PyTorch's kernel there."""
    query, key, value = (
        torch.randn(2, 3, length, 8, generator=torch.Generator().manual_seed(i))
        for i, length in enumerate((6, 6 + start, 6 + start))
    )
    mask = AttentionMask(causal=True, start=start)
    exact = attend(query, key, value, mask)
    short = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    torch.testing.assert_close(short.float(), exact, atol=0.03, rtol=0.03)
    key[:, :, start + 1 :], value[:, :, start + 1 :] = 9.0, 9.0  # what comes later
    changed = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    torch.testing.assert_close(changed[:, :, 0], short[:, :, 0])
