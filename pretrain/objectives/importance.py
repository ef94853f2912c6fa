"""How much each patch matters to a teacher, for masks that are guided by it (MaskAlign: Xue et al., "Stare at What You
See", section 3.2; AttMask: Kakogeorgiou et al., section 3.1).

Attention is taken of the last block alone, from its input and its weights: the blocks themselves run fused and never
write a matrix of attention. Letters: B images, L tokens, N patches, H heads, E channels of a head, D width."""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

Importance = Literal["class", "received", "similarity"]


def gives_attention(block: nn.Module) -> bool:
    """Whether block is pre-norm self-attention with one projection and nothing beside it, ours or timm's."""
    attention = getattr(block, "attn", None)
    plain = isinstance(getattr(attention, "qkv", None), nn.Linear) and type(attention).__name__ == "Attention"
    return plain and isinstance(getattr(block, "norm1", None), nn.LayerNorm) and type(block).__name__ == "Block"


def class_attention(block: Any, x: Tensor) -> Tensor:
    """How much the first of a block's input tokens x (B, L, D) attends to each, mean over heads: (B, L) float32, rows
    that sum to 1. Only that token's queries and all keys are computed."""
    y = block.norm1(x)
    return _weights(_part(block, y[:, :1], 0), _part(block, y, 1)).mean(1).squeeze(1)


def attention_received(block: Any, x: Tensor, num_prefix: int) -> Tensor:
    """How much each of a block's input tokens x (B, L, D) is attended to by a patch, mean over heads and patches: (B,
    L) float32, rows that sum to 1. One head at a time, so that one matrix is in memory."""
    y = block.norm1(x)
    q, k = _part(block, y[:, num_prefix:], 0), _part(block, y, 1)
    total = x.new_zeros(x.shape[:2], dtype=torch.float32)
    for head in range(q.shape[1]):
        total += _weights(q[:, head : head + 1], k[:, head : head + 1]).mean((1, 2))
    return total / q.shape[1]


def similarity(summary: Tensor, patches: Tensor) -> Tensor:
    """How alike each of patches (B, N, D) is to summary (B, 1, D), both whitened: (1 + cosine) / 2, (B, N) float32."""
    width = patches.shape[-1:]
    one, others = F.layer_norm(summary.float(), width), F.layer_norm(patches.float(), width)
    return (1 + F.cosine_similarity(one, others, dim=-1)) / 2


def importance_flops(kind: Importance, num_patches: int, num_prefix: int, width: int) -> float:
    """FLOPs of telling the importance of one image's patches, beside the blocks."""
    asking = {"class": 1, "received": num_patches, "similarity": 0}[kind]
    tokens = num_patches + num_prefix
    return 2 * (tokens + asking) * width**2 + 2 * asking * tokens * width if asking else 0.0


def _part(block: Any, y: Tensor, part: int) -> Tensor:
    """Queries (0) or keys (1) of normalised tokens y (B, L, D): (B, H, L, E)."""
    attention = block.attn
    num = attention.qkv.out_features // 3
    rows = slice(part * num, (part + 1) * num)
    bias = attention.qkv.bias
    heads = F.linear(y, attention.qkv.weight[rows], None if bias is None else bias[rows])
    heads = rearrange(heads, "b l (h e) -> b h l e", h=attention.num_heads)
    norm = getattr(attention, ("q_norm", "k_norm")[part], None)  # timm's models with normalised queries and keys
    return heads if norm is None else norm(heads)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) of q (B, H, L, E) and k (B, H, S, E), (B, H, L, S) float32."""
    return (q.float() @ k.float().mT).mul_(q.shape[-1] ** -0.5).softmax(-1)
