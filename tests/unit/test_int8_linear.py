"""Weights of 8 bits: near the exact ones, and rows that do not depend on each other."""

import pytest
import torch

from orchestrator.infer.int8_linear import Int8Linear, quantized
from orchestrator.infer.precision import quantize_weights
from orchestrator.model.generate import Sampling
from tests.unit.generation import answers, make_batch, request


def test_numbers_are_rounded_to_their_rows_scale() -> None:
    x_ND = torch.tensor([[0.0, 0.0, 0.0], [1.27, -0.5, 0.004], [-254.0, 3.0, 0.9]])
    int8_ND, scale_N1 = quantized(x_ND)
    assert int8_ND.tolist() == [[0, 0, 0], [127, -50, 0], [-127, 2, 0]]
    torch.testing.assert_close(scale_N1[1:], torch.tensor([[0.01], [2.0]]))


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_map_is_near_the_exact_one_in_any_company(has_bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(192, 80, bias=has_bias)
    int8 = Int8Linear(linear.weight, linear.bias)
    x_ND = torch.randn(64, 192) * torch.logspace(-3, 3, 64)[:, None]
    exact_NF, found_NF = linear(x_ND).detach(), int8(x_ND)
    error_N = (found_NF - exact_NF).norm(dim=1) / exact_NF.norm(dim=1)
    assert 0 < error_N.max() < 0.02
    for count in (1, 2, 3, 17, 40):
        assert torch.equal(int8(x_ND[:count].clone()), found_NF[:count])
    assert torch.equal(int8(x_ND[None, :6].unflatten(1, (2, 3)))[0].flatten(0, 1), found_NF[:6])


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_a_model_generates_with_8_bits_the_same_in_any_company(make_model, family: str) -> None:
    model = make_model(vocab_size=50, d_model=32, max_seq_len=48, family=family)
    source = [3, 1, 4] if family == "encoder_decoder" else None
    requests = [
        request([i, 2, 3][: 1 + i % 3], 10, Sampling(0.7, seed=i), source=source, logprobs=1)
        for i in range(6)
    ]
    exact = answers(make_batch(model), requests[:1])[0].tokens[0].logprob
    model = make_model(vocab_size=50, d_model=32, max_seq_len=48, family=family)
    quantize_weights(model)
    together = answers(make_batch(model, slots=4), requests, every=1)
    for each, answer in zip(requests, together, strict=True):
        assert answers(make_batch(model, slots=1), [each])[0].tokens == answer.tokens
    assert together[0].tokens[0].logprob == pytest.approx(exact, abs=0.5)
    assert together[0].tokens[0].logprob != exact
