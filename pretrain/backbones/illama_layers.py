"""LLaMA's layers under the names of iLLaMA's published weights. Letters: B images, L tokens, D width, H heads."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.backbones.layers import NORM_EPS, DropPath
from pretrain.backbones.rotary import rotate
from pretrain.backbones.sight import Sight, attend


class RMSNorm(nn.Module):
    """x over the root of its mean square, times a learned gain; the quotient in float32, cast back before the gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), each token by itself."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, wide.shape[-1:], eps=NORM_EPS).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    """W2 (silu(W1 x) * W3 x), without biases (Shazeer, "GLU Variants Improve Transformer", section 2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.fc3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), each token by itself."""
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class RotaryAttention(nn.Module):
    """Self-attention with one fused projection, whose queries and keys are turned by their places."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turns: Tensor, sight: Sight) -> Tensor:
        """x (B, L, D) attends to itself as far as sight lets it; turns (B or 1, L, E / 2) complex: (B, L, D)."""
        qkv = rearrange(self.qkv(x), "b l (three h e) -> b l three h e", three=3, h=self.num_heads)
        return self.proj(rearrange(attend(rotate(qkv, turns), sight), "b l h e -> b l (h e)"))


class LlamaBlock(nn.Module):
    """Pre-norm block of LLaMA."""

    def __init__(self, width: int, num_heads: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = RotaryAttention(width, num_heads)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, turns: Tensor, sight: Sight) -> Tensor:
        """(B, L, D) to (B, L, D); turns and sight as in RotaryAttention."""
        x = x + self.drop_path1(self.attn(self.norm1(x), turns, sight))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


def swiglu_width(width: int) -> int:
    """Hidden channels of LLaMA's SwiGLU for a block of this width: two thirds of four times it, rounded up to 256."""
    return 256 * -(-(2 * 4 * width // 3) // 256)
