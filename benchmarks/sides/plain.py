"""MAE written plainly, as one would on first reading the paper: the other side of benchmarks/step.py's ratios.

Float images, every patch embedded by a convolution, two argsorts, gathers with repeated indices, tokens put back in
raster order, attention with its weights in memory, the whole decoder and its head on all patches, and a loss over all
patches times the mask. Nothing is fused and nothing is clever; nothing is slowed down on purpose either. Weights have
the names that Lacuna gives them, so that both sides can start from the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainAttention(nn.Module):
    """Self-attention, weights and all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1)) * self.scale
        weights = weights.softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = PlainAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(width, 4 * width)
        self.mlp.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class PlainMAE(nn.Module):
    """Encoder, decoder and loss. `encoder` and `decoder` are (width, depth, heads)."""

    def __init__(
        self,
        patch_size: int,
        num_patches: int,
        encoder: tuple[int, int, int],
        decoder: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        width, depth, heads = encoder
        self.backbone = nn.Module()
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.backbone.register_buffer("pos_embed", torch.zeros(1, 1 + num_patches, width))
        self.backbone.patch_embed = nn.Module()
        self.backbone.patch_embed.proj = nn.Conv2d(len(mean), width, patch_size, stride=patch_size)
        self.backbone.blocks = nn.ModuleList(PlainBlock(width, heads) for _ in range(depth))
        self.backbone.norm = nn.LayerNorm(width, eps=1e-6)
        wide, depth, heads = decoder
        self.decoder = nn.Module()
        self.decoder.embed = nn.Linear(width, wide)
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, wide))
        self.decoder.register_buffer("pos_embed", torch.zeros(1, 1 + num_patches, wide))
        self.decoder.blocks = nn.ModuleList(PlainBlock(wide, heads) for _ in range(depth))
        self.decoder.norm = nn.LayerNorm(wide, eps=1e-6)
        self.decoder.head = nn.Linear(wide, len(mean) * patch_size**2)

    def forward(self, images: Tensor, noise: Tensor, num_visible: int) -> Tensor:
        """images (B, C, H, W) uint8; of noise (B, N) the highest stay visible. The loss, () float32."""
        pixels = (images.float() / 255 - self.mean) / self.std
        latent, mask, ids_restore = self._encode(pixels, noise, num_visible)
        prediction = self._decode(latent, ids_restore)
        target = self._patchify(pixels)
        mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1e-6) ** 0.5
        loss = ((prediction - target) ** 2).mean(dim=-1)
        return (loss * mask).sum() / mask.sum()

    def _encode(self, pixels: Tensor, noise: Tensor, num_visible: int) -> tuple[Tensor, Tensor, Tensor]:
        backbone = self.backbone
        x = backbone.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = x + backbone.pos_embed[:, 1:]
        ids_shuffle = torch.argsort(noise, dim=1, descending=True)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        ids_keep = ids_shuffle[:, :num_visible]
        x = torch.gather(x, dim=1, index=ids_keep.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        mask = torch.ones_like(noise)
        mask[:, :num_visible] = 0
        mask = torch.gather(mask, dim=1, index=ids_restore)
        front = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([front, x], dim=1)
        for block in backbone.blocks:
            x = block(x)
        return backbone.norm(x), mask, ids_restore

    def _decode(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        decoder = self.decoder
        x = decoder.embed(latent)
        missing = ids_restore.shape[1] + 1 - x.shape[1]
        patches = torch.cat([x[:, 1:], decoder.mask_token.repeat(x.shape[0], missing, 1).to(x.dtype)], dim=1)
        patches = torch.gather(patches, dim=1, index=ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + decoder.pos_embed
        for block in decoder.blocks:
            x = block(x)
        return decoder.head(decoder.norm(x))[:, 1:]

    def _patchify(self, pixels: Tensor) -> Tensor:
        p, (batch, channels, height, width) = self.patch_size, pixels.shape
        x = pixels.reshape(batch, channels, height // p, p, width // p, p)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * p * p)
