"""Learned positions of one grid for another."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from masking.mask import Grid


def resize_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """The positions table (1, slots + N, D) of grid old for grid new; the slots of prefix tokens, in front, stay."""
    slots = table.shape[1] - old.num_patches
    return torch.cat([table[:, :slots], resize_patch_positions(table[:, slots:], old, new)], dim=1)


def resize_patch_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """The positions table (1, N, D) of the patches of grid old for those of grid new, bicubic and antialiased as timm
    does when a model is made for another img_size; the table itself where the grids are the same."""
    if old == new:
        return table
    image = rearrange(table, "one (h w) d -> one d h w", h=old.height, w=old.width)
    image = F.interpolate(image.float(), (new.height, new.width), mode="bicubic", antialias=True)
    return rearrange(image, "one d h w -> one (h w) d").to(table.dtype)
