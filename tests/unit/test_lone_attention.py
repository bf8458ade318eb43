"""A query's attention has the same bits in any company, on any number of threads."""

import pytest
import torch
import torch.nn.functional as F

from orchestrator.infer.lone_attention import attend_alone, depends_on_threads


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("width", [16, 48, 64])
@pytest.mark.parametrize("keys", [32, 160, 640])
def test_a_query_has_the_same_bits_beside_others(threads: int, width: int, keys: int) -> None:
    random = torch.Generator().manual_seed(0)
    query = torch.randn(8, 3, 1, width, generator=random)
    key, value = (torch.randn(8, 3, keys, width, generator=random) for _ in range(2))
    mask = torch.zeros(8, 1, 1, keys).expand(-1, 3, -1, -1)
    together = attend_alone(query, key, value, mask)
    for i in range(8):
        part = slice(i, i + 1)
        alone = attend_alone(query[part], key[part], value[part], mask[part])
        assert torch.equal(alone, together[part])
    assert torch.allclose(together, F.scaled_dot_product_attention(query, key, value), atol=1e-5)
    assert torch.get_num_threads() == threads


def test_one_thread_is_always_the_same() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert not depends_on_threads(64, torch.float32, 1)
    finally:
        torch.set_num_threads(before)
