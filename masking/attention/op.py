"""Attention, and the choice of what computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from masking.attention.matmul import CrossAttention, PackedAttention


class Branch(NamedTuple):
    """What will compute an attention, and why."""

    name: str
    reason: str


_forced: list[str] = []


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v. q is (B, H, L, E), k and v are (B, H, S, E), one float dtype; (B, H, L, E)."""
    return _BRANCHES[choose(q.device.type, q.dtype).name](q, k, v)


def self_attention(qkv: Tensor, num_queries: int | None = None, key_bias: Tensor | None = None) -> Tensor:
    """Attention of a projection qkv (B, L, 3, H, E) to itself: (B, L, H, E), or (B, num_queries, H, E) where only the
    last so many rows ask. key_bias (L,), of qkv's dtype, is added to the logits of each key: the log of its weight."""
    num_queries = qkv.shape[1] if num_queries is None else num_queries
    if choose(qkv.device.type, qkv.dtype).name == "matmul":
        return PackedAttention.apply(qkv, num_queries, key_bias)  # type: ignore[no-untyped-call]
    # Unbinding the axis that the projection wrote lets backward stack the three gradients without a second copy.
    q, k, v = (rearrange(part, "b l h e -> b h l e") for part in qkv.unbind(2))
    if num_queries < q.shape[2]:
        q = q[:, :, -num_queries:]
    if key_bias is not None:
        mask = rearrange(key_bias, "s -> 1 s")
        return rearrange(scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h l e -> b l h e")
    return rearrange(attention(q, k, v), "b h l e -> b l h e")


def cross_attention(q: Tensor, kv: Tensor) -> Tensor:
    """Attention of queries q (B, L, H, E) to packed keys and values kv (B, S, 2, H, E), one float dtype: like q."""
    if choose(q.device.type, q.dtype).name == "matmul":
        return CrossAttention.apply(q, kv)  # type: ignore[no-untyped-call]
    k, v = (rearrange(part, "b s h e -> b h s e") for part in kv.unbind(2))
    return rearrange(attention(rearrange(q, "b l h e -> b h l e"), k, v), "b h l e -> b l h e")


def choose(device_type: str, dtype: torch.dtype) -> Branch:
    """The branch taken for tensors of this device and dtype."""
    if _forced:
        return Branch(_forced[-1], "asked for by `forced`")
    if device_type == "cpu" and dtype == torch.bfloat16:
        return Branch("matmul", "backward of torch's fused attention for CPUs is 3 to 7 times slower in bf16")
    return Branch("sdpa", "torch's fused attention does not materialise the weights")


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Makes every attention inside take one branch, "sdpa" or "matmul": for comparisons."""
    if name not in _BRANCHES:
        raise ValueError(f"no attention branch {name!r}; there are {', '.join(_BRANCHES)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def _matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads, scale = q.shape[1], q.shape[-1] ** -0.5
    q, k, v = (rearrange(x, "b h l e -> (b h) l e") for x in (q, k, v))
    nothing = q.new_empty(1, 1, 1)  # beta=0: never read; alpha scales inside the product
    weights = torch.baddbmm(nothing, q, k.mT, beta=0, alpha=scale).softmax(dim=-1)
    return rearrange(weights @ v, "(b h) l e -> b h l e", h=heads)


_BRANCHES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": scaled_dot_product_attention,
    "matmul": _matmul,
}
