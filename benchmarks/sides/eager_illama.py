"""iLLaMA as its paper describes it, operation by operation: the other side of benchmarks/illama_step.py's ratios.

The mask of N x N is built in every forward and multiplied onto the weights after the softmax, both in memory; positions
turn queries and keys as complex numbers in fp32, cast back afterwards; the norm is written with torch's elementary
operations in fp32 (Wang et al., "Adapting LLaMA Decoder to Vision Transformer", section 3). Nothing is fused, and
nothing is slowed down on purpose: the mask is built once for all blocks. Weights have the names that Lacuna gives them,
so that both sides can start from the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.sides.plain import PlainMAE


class EagerNorm(nn.Module):
    """RMSNorm in fp32 (fp64 stays), cast back before the gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight


class EagerAttention(nn.Module):
    """Self-attention whose weights are multiplied by a mask behind the softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).unbind(2)
        q, k, v = _turn(q, turns).transpose(1, 2), _turn(k, turns).transpose(1, 2), v.transpose(1, 2)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        weights = weights * mask
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class EagerBlock(nn.Module):
    """Pre-norm block with SwiGLU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = EagerNorm(width)
        self.attn = EagerAttention(width, heads)
        self.norm2 = EagerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(width, hidden, bias=False)
        self.mlp.fc2 = nn.Linear(hidden, width, bias=False)
        self.mlp.fc3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), turns, mask)
        y = self.norm2(x)
        return x + self.mlp.fc2(F.silu(self.mlp.fc1(y)) * self.mlp.fc3(y))


class EagerIllama(nn.Module):
    """The encoder. `sizes` is (width, depth, heads)."""

    turns: Tensor

    def __init__(self, in_chans: int, patch_size: int, num_patches: int, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        width, depth, heads = sizes
        self.num_patches, self.alpha = num_patches, 0.0
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_chans, width, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, width))
        hidden = 256 * -(-(8 * width // 3) // 256)
        self.blocks = nn.ModuleList(EagerBlock(width, heads, hidden) for _ in range(depth))
        self.norm = EagerNorm(width)
        rates = 10_000.0 ** -(torch.arange(0, width // heads, 2).double() / (width // heads))
        angles = torch.outer(torch.arange(num_patches + 1).double(), rates)
        self.turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)  # no cast of weights reaches it

    def forward(self, pixels: Tensor, ids: Tensor | None = None) -> Tensor:
        """Normalised images (B, C, H, W), of which patches ids (B, K) ascending are seen, all where None: (B, K + 1, D)
        with the class token last."""
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed[:, :-1]
        self.turns = self.turns.to(x.device)
        turns = self.turns[None]
        if ids is not None:
            x = torch.gather(x, dim=1, index=ids.unsqueeze(-1).repeat(1, 1, x.shape[2]))
            turns = self.turns[torch.cat([ids, ids.new_full((len(ids), 1), self.num_patches)], dim=1)]
        own = (self.cls_token + self.pos_embed[:, -1:]).expand(len(x), -1, -1)
        x = torch.cat([x, own], dim=1)
        ones = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
        mask = self.alpha * ones + (1 - self.alpha) * torch.tril(ones)
        for block in self.blocks:
            x = block(x, turns, mask)
        return self.norm(x)


class EagerSupervised(nn.Module):
    """Squared distance of the class token's features from fixed ones, in place of a classifier: the mean of their
    squares would be 1 whatever the weights, by the norm."""

    def __init__(self, backbone: EagerIllama, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, wanted: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 and features wanted of them (B, D) float: the loss, ()."""
        pixels = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        return (self.backbone(pixels.to(self.backbone.cls_token.dtype))[:, -1] - wanted).square().mean()


class EagerMAE(PlainMAE):
    """MAE with that encoder on visible patches, in raster order; all else as in plain.py."""

    def __init__(
        self, backbone: EagerIllama, patch_size: int, sizes: tuple[int, int, int], decoder: tuple[int, int, int],
        mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        super().__init__(patch_size, backbone.num_patches, (sizes[0], 0, sizes[2]), decoder, mean, std)
        self.backbone = backbone

    def _encode(self, pixels: Tensor, noise: Tensor, num_visible: int) -> tuple[Tensor, Tensor, Tensor]:
        ids_shuffle = torch.argsort(noise, dim=1, descending=True)
        ids_keep = ids_shuffle[:, :num_visible].sort(dim=1).values
        ids_restore = torch.argsort(torch.cat([ids_keep, ids_shuffle[:, num_visible:]], dim=1), dim=1)
        mask = torch.ones_like(noise)
        mask[:, :num_visible] = 0
        mask = torch.gather(mask, dim=1, index=ids_restore)
        x = self.backbone(pixels.to(self.backbone.cls_token.dtype), ids_keep)
        return torch.cat([x[:, -1:], x[:, :-1]], dim=1), mask, ids_restore


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """x (B, L, H, E) turned by its places' turns (B or 1, L, E / 2)."""
    pairs = torch.view_as_complex(_wide(x).reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns.unsqueeze(2)).flatten(3).type_as(x)
