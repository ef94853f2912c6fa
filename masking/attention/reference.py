"""What attention is, in as few words as torch allows: the specification every faster branch is tested against."""

from __future__ import annotations

from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v. q is (B, H, L, E), k and v are (B, H, S, E), any float dtype; (B, H, L, E)."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v
