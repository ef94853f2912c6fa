"""From the pixels of patches to tokens, as a convolution whose stride is its kernel. Letters: B images, N patches, L
tokens asked for, P values in one patch, D width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.patches import PatchScale, gather_patches, patchify


class PatchProjection(nn.Module):
    """The weights of a convolution whose stride is its kernel, applied to patches that are already cut out."""

    def __init__(self, in_chans: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, in_chans, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight.view(width, -1))

    def forward(self, patches: Tensor, pixels: PatchScale) -> Tensor:
        """Patches (B, L, P), uint8 or normalised floats, to (B, L, D). uint8 is normalised in the weights: its centred
        values are exact even in bf16, so the image itself is never rounded."""
        weight = rearrange(self.weight, "d c p q -> d (c p q)")
        if patches.is_floating_point():
            return F.linear(patches.to(weight.dtype), weight, self.bias)
        folded = weight * pixels.scale  # float32, whatever the weights are
        bias = self.bias + (weight * pixels.shift).sum(1)
        centred = patches.to(weight.dtype).sub_(pixels.centre)
        return F.linear(centred, folded.to(weight.dtype), bias.to(weight.dtype))


class PatchEmbed(nn.Module):
    """From images to one token a patch, touching only the patches asked for."""

    def __init__(self, in_chans: int, patch_size: int, width: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchProjection(in_chans, patch_size, width)
        self.pixels = PatchScale(mean, std, patch_size)

    def forward(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), patches ids (B, L) or all: (B, L, D)."""
        p = self.patch_size
        patches = patchify(images, p) if ids is None else gather_patches(images, p, ids)
        return self.proj(patches, self.pixels)
