"""What attention is, in as few words as torch allows: the specification every faster branch is tested against."""

from __future__ import annotations

from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v. q is (B, H, L, E), k and v are (B, H, S, E), any float dtype; (B, H, L, E)."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v


def weighted_attention_reference(q: Tensor, k: Tensor, v: Tensor, key_weights: Tensor) -> Tensor:
    """sum_j g_j e^(s_ij) v_j / sum_j g_j e^(s_ij) with s = q k^T / sqrt(E): key j counts by key_weights g (S,) inside
    the softmax, 0 or more and not all 0. Shapes as above; a key of weight 0 might as well not be there."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + key_weights.log()).softmax(dim=-1)
    return weights @ v
