"""Attention in which no query depends on another.

PyTorch computes each query and head as a product of its own, on any of its threads, each with a
buffer of its own. Where MKL's kernels add up in another order if the buffer begins elsewhere, as on
AMD's processors, a query's bits depend on the thread that it falls to, and so on how many others
there are. There, one thread computes them all.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

KEYS = (48, 640)  # within one block of PyTorch's kernel, and beyond
QUERIES = 5


def attend_alone(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention` of one token a query: (B, H, 1, K) to (B, H, 1, K)."""
    threads = torch.get_num_threads()
    is_safe = query.device.type != "cpu" or threads == 1
    if is_safe or not depends_on_threads(query.shape[-1], query.dtype, threads):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.set_num_threads(1)
    try:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    finally:
        torch.set_num_threads(threads)


@functools.cache
def depends_on_threads(width: int, dtype: torch.dtype, threads: int) -> bool:
    """Whether the same query, beside copies of itself, gets other bits on one of the threads."""
    random = torch.Generator().manual_seed(threads)
    for keys in KEYS:
        shape = (QUERIES * threads, 1, -1, -1)
        query, key, value = (
            torch.randn(1, 1, n, width, generator=random).to(dtype).expand(shape)
            for n in (1, keys, keys)
        )
        mask = torch.zeros(1, 1, 1, keys, dtype=dtype).expand(shape)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if not torch.equal(found, found[:1].expand_as(found)):
            return True
    return False
