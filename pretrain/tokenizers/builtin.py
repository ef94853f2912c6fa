"""Tokenizers without weights: the pixels of a patch as they are, and its mean colour as one of 512.

Pixels is what MAR generates in its experiment without a tokenizer (Li et al., "Autoregressive Image Generation without
Vector Quantization", ImageNet at 64 x 64). Palette follows image GPT's palette of 9 bits (Chen et al., "Generative
Pretraining from Pixels"), which was learned; ours is a cube of equal cells."""

from __future__ import annotations

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from masking.mask import Grid
from pretrain.patches import patchify, unpatchify
from pretrain.tokenizers.base import Tokenizer

_SPREAD = 0.5  # deviation of pixels in -1..1, about; tokens have then about unit deviation
_LEVELS = 8  # of each channel


class Pixels(Tokenizer):
    """Continuous tokens: the values of a patch, laid out as `patchify` does."""

    num_codes = None

    def __init__(self, patch_size: int, in_chans: int) -> None:
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.num_values = in_chans * patch_size**2

    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) uint8 as values (B, N, C * p * p) float32, pixels in -1..1 over 0.5."""
        return (patchify(images, self.patch_size).float() / 127.5 - 1) / _SPREAD

    def images(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Values (B, N, C * p * p) as images (B, C, H, W) float32 in 0..1."""
        pixels = (tokens.float() * _SPREAD + 1) / 2
        return unpatchify(pixels, self.patch_size, grid.height, grid.width).clamp(0, 1)


class Palette(Tokenizer):
    """Discrete tokens: the mean colour of a patch, 8 levels a channel; patches are painted flat. For demos."""

    num_codes = _LEVELS**3
    num_values = in_chans = 3

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) uint8 as ids (B, N) int64, red * 64 + green * 8 + blue."""
        p = self.patch_size
        colours = reduce(images.float(), "b c (h p) (w q) -> b c (h w)", "mean", p=p, q=p)
        red, green, blue = (colours * _LEVELS / 256).long().unbind(1)  # a mean is at most 255: levels are 0 to 7
        return (red * _LEVELS + green) * _LEVELS + blue

    def images(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Ids (B, N) as images (B, 3, H, W) float32: each colour is the middle of its cell."""
        levels = torch.stack([tokens // _LEVELS**2, tokens // _LEVELS % _LEVELS, tokens % _LEVELS], dim=1)
        colours = rearrange((levels.float() + 0.5) / _LEVELS, "b c (h w) -> b c h w", h=grid.height)
        return repeat(colours, "b c h w -> b c (h p) (w q)", p=self.patch_size, q=self.patch_size)
