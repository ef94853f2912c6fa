"""The pixels of patches as something to predict, and predictions as pixels again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masking.mask import Mask
from pretrain.backbones.base import Backbone
from pretrain.patches import PatchScale, denormalize, gather_patches, unpatchify

_VAR_EPS = 1e-6  # added to a patch's variance before its root


class PixelTarget(nn.Module):
    """Pixels as the backbone normalises them, or each patch by its own mean and standard deviation (MAE, section 3)."""

    def __init__(self, backbone: Backbone, norm_pixels: bool) -> None:
        super().__init__()
        self.norm_pixels = norm_pixels
        self.mean, self.std = backbone.mean, backbone.std
        self.patch_size, self.grid = backbone.patch_size, backbone.grid
        self.scale = PatchScale(backbone.mean, backbone.std, backbone.patch_size)

    @torch.no_grad()
    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """What is predicted for patches ids (B, L) of images (B, C, H, W): (B, L, P) float32."""
        patches = self.scale(gather_patches(images, self.patch_size, ids))
        return normalize_patches(patches) if self.norm_pixels else patches

    @torch.no_grad()
    def paste(self, images: Tensor, mask: Mask, prediction: Tensor) -> Tensor:
        """Visible pixels of images (B, C, H, W) as they are and the prediction (B, M, P) for all hidden patches:
        (B, C, H, W) float32 in 0..1. Predictions normalised by patch get the mean and variance of the true patch back,
        which a model is not asked to know."""
        hidden = prediction.float()
        if self.norm_pixels:
            truth = self.scale(gather_patches(images, self.patch_size, mask.ids_mask))
            var, mean = torch.var_mean(truth, dim=-1, keepdim=True)
            hidden = hidden * (var + _VAR_EPS).sqrt() + mean
        visible = self.scale(gather_patches(images, self.patch_size, mask.ids_keep))
        patches = denormalize(mask.restore(visible, hidden), self.mean, self.std)
        return unpatchify(patches, self.patch_size, self.grid.height, self.grid.width).clamp_(0, 1)


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch (B, L, P) float32 less its mean, over the root of its unbiased variance plus 1e-6: same shape."""
    num = patches.shape[-1]
    ratio = (num - 1) / num  # layer_norm divides by the biased variance: the ratio turns one into the other
    return F.layer_norm(patches, (num,), eps=_VAR_EPS * ratio).mul_(ratio**0.5)
