"""Where a guided mask strategy gets its importance of patches from: the objective, the image itself, or its boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from masking.draw import MaskStrategy
from masking.importance import box_coverage, gradient_energy
from masking.mask import Grid
from pretrain.types import Target


def guidance_of(
    strategy: MaskStrategy, grid: Grid, images: Tensor, target: Target, boxes: Tensor | None
) -> Tensor | None:
    """(B, N) float importance for strategy, or None where it takes none.

    images (B, C, H, W) uint8 on the device; boxes (B, G, 4) in shares of the crop, or None where the batch has none:
    then no patch is in a box.
    """
    if strategy.guided_by == "objective":
        return target.guidance
    if strategy.guided_by == "gradient":
        return gradient_energy(images, grid)
    if strategy.guided_by == "boxes":
        if boxes is None:
            return torch.zeros(len(images), grid.num_patches, device=images.device)
        return box_coverage(boxes.to(images.device, non_blocking=True), grid)
    return None
