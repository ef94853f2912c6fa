"""Transformer layers under timm's names. Letters: B images, L tokens, D width, H heads, E = D / H."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from masking.attention.op import cross_attention, self_attention
from masking.attention.weighting import PLAIN, Weighting
from masking.mask import Grid

NORM_EPS = 1e-6
Rule = Callable[[Tensor, Tensor], Weighting]  # of a block's normed input (B, L, D) and its qkv (B, L, 3, H, E)


class LastKeys(NamedTuple):
    """How much the last keys of a sequence count beside the others, whoever asks."""

    num: int
    weight: float  # factor of their e^logit inside the softmax, 0 to 1; at 0 they are never computed


class Projection(nn.Linear):
    """Queries, keys and values of tokens, one below the other in a single weight (3 * D, D)."""

    def forward(self, x: Tensor, first: int = 0, last: int = 3) -> Tensor:
        """x (B, L, D) to parts first to last - 1 of (queries, keys, values), (B, L, (last - first) * D). The weight is
        cut in here, where ZeRO-3 has gathered it."""
        if (first, last) == (0, 3):
            return super().forward(x)
        rows = slice(first * self.in_features, last * self.in_features)
        return F.linear(x, self.weight[rows], self.bias[rows])


class Attention(nn.Module):
    """Self-attention with one fused projection of queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Projection(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, num_queries: int | None = None, last_keys: LastKeys | None = None, rule: Rule | None = None
    ) -> Tensor:
        """x (B, L, D) attends to itself: (B, L, D), or (B, num_queries, D) where only the last so many rows ask. A rule
        says who sees whom, in place of last_keys."""
        num_tokens = x.shape[1]
        if last_keys is not None and last_keys.weight == 0:
            out = self._attend_to_first(x, num_queries, num_tokens - last_keys.num)
        elif last_keys is None and rule is None and num_queries is not None and 2 * num_queries < num_tokens:
            out = self._attend_to_first(x, num_queries, num_tokens)
        else:
            qkv = rearrange(self.qkv(x), "b l (three h e) -> b l three h e", three=3, h=self.num_heads)
            out = self_attention(qkv, num_queries, _weighting(qkv, last_keys) if rule is None else rule(x, qkv))
        return self.proj(rearrange(out, "b l h e -> b l (h e)"))

    def _attend_to_first(self, x: Tensor, num_queries: int | None, num_keys: int) -> Tensor:
        rows = x if num_queries is None else x[:, -num_queries:]
        q = rearrange(self.qkv(rows, 0, 1), "b l (h e) -> b l h e", h=self.num_heads)
        kv = self.qkv(x[:, :num_keys], 1, 3)
        return cross_attention(q, rearrange(kv, "b s (two h e) -> b s two h e", two=2, h=self.num_heads))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), each token by itself."""
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (CaiT, section 2.1)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) times gamma."""
        return x * self.gamma


class DropPath(nn.Module):
    """Drops a residual branch for whole images and scales up the others (stochastic depth); draws from torch's own
    generator, which the step seeds."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D), with images zeroed at random while training."""
        if not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep_prob).div_(keep_prob)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, layer_scale: float | None = None, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, num_queries: int | None = None, last_keys: LastKeys | None = None, rule: Rule | None = None
    ) -> Tensor:
        """x (B, L, D); where num_queries is given only the last so many rows come out: (B, num_queries, D). last_keys
        says how much the last rows count as keys, a rule more than that; None: as much as the others."""
        rows = x if num_queries is None else x[:, -num_queries:]
        x = rows + self.drop_path1(self.ls1(self.attn(self.norm1(x), num_queries, last_keys, rule)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def run_block(block: nn.Module, x: Tensor, *rest: object, checkpointing: bool) -> Tensor:
    """block(x, *rest), keeping only its input for backward where checkpointing is on."""
    if not (checkpointing and torch.is_grad_enabled()):
        return block(x, *rest)
    return checkpoint(block, x, *rest, use_reentrant=False)


def sincos_positions(grid: Grid, width: int, num_prefix: int = 0) -> Tensor:
    """Fixed 2D positions (MAE, appendix A.1): half the channels for the column, half for the row, each half sines then
    cosines of geometric frequencies; zeros for prefix tokens. (1, num_prefix + N, width) float32."""
    if width % 4:
        raise ValueError(f"width={width}; sin-cos positions need a multiple of 4")
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    halves = []
    for place in (column, row):
        angles = rearrange(place, "h w -> (h w) 1") * frequencies
        halves += [angles.sin(), angles.cos()]
    table = torch.cat(halves, dim=1).float()
    return rearrange(torch.cat([torch.zeros(num_prefix, width), table]), "n d -> 1 n d")


def initialize(module: nn.Module) -> None:
    """MAE's start: linear weights Xavier uniform, biases zero; norms stay at one and zero."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)


def _weighting(qkv: Tensor, last_keys: LastKeys | None) -> Weighting:
    """How much each of qkv's keys counts."""
    if last_keys is None or last_keys.weight == 1:
        return PLAIN
    bias = qkv.new_zeros(qkv.shape[1], dtype=torch.promote_types(qkv.dtype, torch.float32))
    bias[-last_keys.num :] = math.log(last_keys.weight)
    return Weighting(key_bias=bias)
