"""Tokens that were written once and are read in place of pixels: as an array of bytes (C, h, w) uint8, one place a
token, that goes through the loader like an image.

Channel 0 numbers the columns. Behind it are the bytes of each token of the image, then those of the mirrored image's
tokens, laid out so that they stand right once the loader has mirrored the array: the numbers then run backwards, and
tell. So a mirrored image has its own tokens, and the draw that mirrors it is that of every other run."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from masking.mask import Grid
from pretrain.tokenizers.base import Kind, Tokenizer

MAX_SIDE = 256  # columns that a byte can number
_BYTES = 2  # of a code, or of each number of a token, float16


def stored_kind(kind: Kind) -> Kind:
    """What is known of the tokens of a tokenizer of this kind once they are stored."""
    moments = 2 if kind.sampled else 1  # a mean and a variance
    numbers = 1 if kind.num_codes is not None else kind.num_values * moments
    return Kind(1, kind.num_codes, kind.num_values, 1 + 2 * _BYTES * numbers, kind.sampled)


def store(tokens: Tensor, mirrored: Tensor, grid: Grid) -> Tensor:
    """Tokens of images and of the same mirrored, (B, N) int64 below 65536 or (B, N, num_values), or the moments of
    sampled ones: (B, C, h, w) uint8."""
    views = [_as_bytes(part, grid) for part in (tokens, mirrored)]
    columns = torch.arange(grid.width, dtype=torch.uint8, device=tokens.device)
    numbers = columns.expand(len(tokens), 1, grid.height, -1)
    return torch.cat([numbers, views[0], views[1].flip(-1)], dim=1)


class StoredTokens(Tokenizer):
    """Reads what `store` wrote; images are painted by the tokenizer that made the tokens."""

    def __init__(self, made_by: Tokenizer, kind: Kind) -> None:
        super().__init__()
        self.made_by = made_by
        self.patch_size, self.in_chans = kind.patch_size, kind.in_chans
        self.num_codes, self.num_values, self.sampled = kind.num_codes, kind.num_values, kind.sampled

    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Arrays (B, C, h, w) uint8, as they were stored or mirrored, as ids (B, N) or values (B, N, num_values), drawn
        by noise where they are sampled."""
        if self.sampled:
            return self.draw(self.moments(images), noise)
        if self.num_codes is None:
            return _as_numbers(_view(images))
        low, high = _view(images).long().unbind(1)
        return rearrange(low + 256 * high, "b h w -> b (h w)")

    def moments(self, images: Tensor) -> Tensor:
        """What the tokens of arrays (B, C, h, w) uint8 are drawn from: (B, N, 2 * num_values) float32."""
        return _as_numbers(_view(images))

    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, N, num_values) float32 of `moments`."""
        return self.made_by.draw(moments, noise)

    def images(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens of all places of grid as images (B, C, H, W) float32 in 0..1, at the size of the pixels."""
        return self.made_by.images(tokens, grid)


def _view(arrays: Tensor) -> Tensor:
    """The bytes of tokens that stand right in arrays (B, C, h, w), mirrored or not: (B, c, h, w)."""
    is_mirrored = arrays[:, 0, 0, 0] > arrays[:, 0, 0, -1]
    plain, mirrored = arrays[:, 1:].chunk(2, dim=1)
    return torch.where(is_mirrored[:, None, None, None], mirrored, plain)


def _as_numbers(found: Tensor) -> Tensor:
    """Bytes (B, c, h, w) of float16 as (B, N, c / 2) float32."""
    pairs = rearrange(found, "b (v two) h w -> b (h w) v two", two=_BYTES).contiguous()
    return pairs.view(torch.float16)[..., 0].float()


def _as_bytes(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, C, h, w) uint8, the lower byte first."""
    if tokens.ndim == 2:
        pairs = torch.stack([tokens % 256, tokens // 256], dim=2).to(torch.uint8)
    else:
        halves = tokens.to(torch.float16)[..., None].contiguous()
        pairs = rearrange(halves.view(torch.uint8), "b n v two -> b n (v two)")
    return rearrange(pairs, "b (h w) c -> b c h w", h=grid.height)
