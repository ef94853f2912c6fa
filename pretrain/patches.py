"""Images as rows of patches, and pixel values as the numbers a model reads. Grids are in raster order; a patch is laid
out as "(c p q)", channel, row, column, so that a flattened convolution kernel multiplies it as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) cut into patches: (B, N, C * p * p), same dtype."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify` for a grid of height x width patches: (B, C, H, W)."""
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=patch_size, q=patch_size)


def gather_patches(images: Tensor, patch_size: int, ids: Tensor) -> Tensor:
    """Patches ids (B, L) int64 of images (B, C, H, W), reading no other pixel: (B, L, C * p * p), same dtype."""
    grid = rearrange(images, "b c (h p) (w q) -> b h w c p q", p=patch_size, q=patch_size)
    row, column = ids // grid.shape[2], ids % grid.shape[2]
    image = rearrange(torch.arange(len(images), device=ids.device), "b -> b 1")
    return rearrange(grid[image, row, column], "b l c p q -> b l (c p q)")


def normalize(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 values, images (B, C, H, W) or patches (B, L, C * p * p), as (value / 255 - mean) / std: float32."""
    scale = _spread([1 / (255 * s) for s in std], values)
    shift = _spread([-m / s for m, s in zip(mean, std, strict=True)], values)
    return torch.addcmul(shift, values.float(), scale)


def denormalize(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The inverse of `normalize` up to the factor 255: float32, in 0..1 for values that were pixels."""
    return torch.addcmul(_spread(mean, values), values.float(), _spread(std, values))


def _spread(per_channel: Sequence[float], values: Tensor) -> Tensor:
    """One number a channel, laid out as values' channels: (C, 1, 1) for images, (C * p * p,) for patches; float32."""
    numbers = torch.tensor(per_channel, dtype=torch.float32, device=values.device)
    if values.ndim == 4:
        return rearrange(numbers, "c -> c 1 1")
    return repeat(numbers, "c -> (c pixels)", pixels=values.shape[-1] // len(per_channel))


class PatchScale(nn.Module):
    """Normalisation of whole patches, (x - centre) * scale + shift, with its constants on the module's device.

    They are kept as the bits of float32 in an integer buffer: `module.bfloat16()` rounds every float buffer, and making
    them anew in each step would wait for the GPU. They are constants of the config, so no state dict holds them."""

    bits: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], patch_size: int) -> None:
        super().__init__()
        # The grey level nearest the mean: what is left of an eight-bit value is then small, and exact even in bf16.
        centre = [min(max(round(255 * m), 0), 255) for m in mean]
        scale = [1 / (255 * s) for s in std]
        shift = [(c / 255 - m) / s for c, m, s in zip(centre, mean, std, strict=True)]
        values = torch.tensor([centre, scale, shift], dtype=torch.float32)
        values = repeat(values, "three c -> three (c pixels)", pixels=patch_size * patch_size).contiguous()
        self.register_buffer("bits", values.view(torch.int32), persistent=False)

    @property
    def centre(self) -> Tensor:
        """The grey level that normalises to `shift`, (C * p * p,) float32."""
        return self.bits.view(torch.float32)[0]

    @property
    def scale(self) -> Tensor:
        """What one grey level becomes, (C * p * p,) float32."""
        return self.bits.view(torch.float32)[1]

    @property
    def shift(self) -> Tensor:
        """What `centre` becomes, (C * p * p,) float32; almost zero."""
        return self.bits.view(torch.float32)[2]

    def forward(self, patches: Tensor) -> Tensor:
        """uint8 patches (B, L, C * p * p) normalised: float32. Floats are taken as normalised already."""
        if patches.is_floating_point():
            return patches.float()
        return torch.addcmul(self.shift, patches - self.centre, self.scale)
