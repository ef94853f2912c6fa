"""What attention is, in as few words as torch allows: the specification every faster branch is tested against."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from masking.attention.weighting import Weighting, dense


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v. q is (B, H, L, E), k and v are (B, H, S, E), any float dtype; (B, H, L, E)."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v


def weighted_attention_reference(q: Tensor, k: Tensor, v: Tensor, weighting: Weighting) -> Tensor:
    """sum_j u_ij r_ij e^(s_ij) v_j / sum_j u_ij e^(s_ij) with s = q k^T / sqrt(E); shapes as above."""
    q, k, v = cleared(q, weighting.query_lengths), cleared(k, weighting.key_lengths), cleared(v, weighting.key_lengths)
    bias, gate = dense(weighting, q.shape[2], k.shape[2], q)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + rearrange(bias, "b l s -> b 1 l s")
    peak = scores.detach().amax(dim=-1, keepdim=True)
    exponentials = (scores - torch.where(peak.isfinite(), peak, 0)).exp()
    total = exponentials.sum(dim=-1, keepdim=True)
    weights = exponentials / torch.where(total > 0, total, 1)
    if gate is not None:
        weights = weights * rearrange(gate, "b l s -> b 1 l s")
    return weights.to(v.dtype) @ v


def cleared(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, H, L, E) with zeros from each image's length on: padding may hold what is no number."""
    if lengths is None:
        return x
    padding = torch.arange(x.shape[2], device=x.device) >= lengths[:, None]
    return x.masked_fill(rearrange(padding, "b l -> b 1 l 1"), 0)
