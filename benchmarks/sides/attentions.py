"""Other ways to compute the same attention: as published, and the exact forms that stock parts of torch allow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from masking.attention.weighting import Weighting, dense

Side = Callable[[Tensor, Weighting], Tensor]  # qkv (B, L, 3, H, E) -> (B, L, H, E)


def eager(qkv: Tensor, weighting: Weighting) -> Tensor:
    """Scores, softmax and product with the mask as matrices, one after the other, all in the type of qkv."""
    return _eager(qkv, weighting, qkv.dtype)


def published(qkv: Tensor, weighting: Weighting) -> Tensor:
    """The same as autocast runs it where iLLaMA is trained: softmax and the product with the mask in float32."""
    return _eager(qkv, weighting, torch.promote_types(qkv.dtype, torch.float32))


def _eager(qkv: Tensor, weighting: Weighting, dtype: torch.dtype) -> Tensor:
    q, k, v = rearrange(qkv, "b l three h e -> three b h l e")
    bias, gate = dense(weighting, q.shape[2], k.shape[2], q)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + rearrange(bias, "b l s -> b 1 l s").to(q.dtype)
    weights = scores.softmax(dim=-1, dtype=dtype)
    if gate is not None:
        weights = weights * rearrange(gate, "b l s -> b 1 l s").to(dtype)
    return rearrange(weights.to(q.dtype) @ v, "b h l e -> b l h e")


def plain_sdpa(qkv: Tensor, _: Weighting) -> Tensor:
    """Ordinary attention of the same shape: what a mask that costs nothing would take. Another function than the
    rest."""
    q, k, v = (rearrange(part, "b l h e -> b h l e") for part in qkv.unbind(2))
    return rearrange(scaled_dot_product_attention(q, k, v), "b h l e -> b l h e")


def doubled(qkv: Tensor, weighting: Weighting) -> Tensor:
    """The soft mask by torch's fused attention over keys and values [K; K] and [V; 0], with biases log S and log(1 -
    S)."""
    q, k, v = (rearrange(part, "b l h e -> b h l e") for part in qkv.unbind(2))
    _, gate = dense(weighting, q.shape[2], k.shape[2], q)
    assert gate is not None
    mask = rearrange(torch.cat([gate.log(), (1 - gate).log()], dim=-1), "b l s -> b 1 l s").to(q.dtype)
    out = scaled_dot_product_attention(q, torch.cat([k, k], 2), torch.cat([v, torch.zeros_like(v)], 2), attn_mask=mask)
    return rearrange(out, "b h l e -> b l h e")


def flex_doubled(qkv: Tensor, weighting: Weighting) -> Tensor:
    """The same by FlexAttention, which computes the biases on the fly. On a GPU alone: it has no backward on a CPU."""
    q, k, v = (rearrange(part, "b l h e -> b h l e") for part in qkv.unbind(2))
    alpha, length = weighting.alpha, q.shape[2]
    assert alpha is not None

    def score(scores: Tensor, _b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        gate = torch.where(torch.where(j < length, j, j - length) <= i, 1.0, alpha)
        return scores + torch.where(j < length, gate, 1 - gate).log()

    out = _flex(q, torch.cat([k, k], 2), torch.cat([v, torch.zeros_like(v)], 2), score_mod=score)
    return rearrange(out, "b h l e -> b l h e")


def flex_merged(qkv: Tensor, weighting: Weighting) -> Tensor:
    """The soft mask as two of FlexAttention's results, full and causal, merged by their log-sum-exp. On a GPU alone."""
    q, k, v = (rearrange(part, "b l h e -> b h l e") for part in qkv.unbind(2))
    assert weighting.alpha is not None

    def causal(scores: Tensor, _b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(j <= i, scores, -torch.inf)

    full, full_sum = _flex(q, k, v, return_lse=True)
    cut, cut_sum = _flex(q, k, v, score_mod=causal, return_lse=True)
    share = ((1 - weighting.alpha) * (cut_sum - full_sum).exp())[..., None]
    return rearrange(weighting.alpha.to(q.dtype) * full + share.to(q.dtype) * cut, "b h l e -> b l h e")


def one_backend(backend: SDPBackend) -> Side:
    """Ordinary attention by one of torch's backends."""

    def side(qkv: Tensor, weighting: Weighting) -> Tensor:
        with sdpa_kernel(backend):
            return plain_sdpa(qkv, weighting)

    return side


torch._dynamo.config.recompile_limit = 64  # one for every size and member
_flex = torch.compile(flex_attention, dynamic=False)
