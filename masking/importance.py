"""How much each patch matters, read off boxes or off the image itself: guidance for strategies that ask for it.

Region-aware masking after OneRef (NeurIPS 2024) hides different shares inside and outside a region; a box tells where
the object is, and where there is none, gradient energy tells where anything is."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor

from masking.mask import Grid


def box_coverage(boxes: Tensor, grid: Grid) -> Tensor:
    """The largest share of each patch that any one box covers, (B, N) float in 0..1; 0 where an image has no box.

    boxes: (B, G, 4) float, left, top, right, bottom in shares of the image; a box without area covers nothing."""
    left, top, right, bottom = boxes.unbind(-1)
    high = _overlap(top, bottom, grid.height)
    wide = _overlap(left, right, grid.width)
    shares = rearrange(high, "b g h -> b g h 1") * rearrange(wide, "b g w -> b g 1 w")
    return reduce(shares, "b g h w -> b (h w)", "max")


def gradient_energy(images: Tensor, grid: Grid) -> Tensor:
    """The mean over each patch of the squared gradient of grey, the mean of the channels in 0..1: (B, N) float32, per
    pixel squared. Central differences; across the border, as if the image were mirrored
    there, 0. A flat image gives exactly 0.

    images: (B, C, H, W) uint8; H and W are multiples of the grid's height and width."""
    grey = images.sum(1, dtype=torch.float32)  # whole numbers, so that differences and their squares are exact
    squares = torch.zeros_like(grey)
    squares[:, 1:-1] += (grey[:, 2:] - grey[:, :-2]).square_()
    squares[:, :, 1:-1] += (grey[:, :, 2:] - grey[:, :, :-2]).square_()
    energy = reduce(squares, "b (h p) (w q) -> b (h w)", "mean", h=grid.height, w=grid.width)
    return energy / (2 * 255 * images.shape[1]) ** 2


def _overlap(start: Tensor, end: Tensor, number: int) -> Tensor:
    """The share of each of `number` equal cells of 0..1 that lies between start and end (B, G): (B, G, number)."""
    cells = torch.arange(number, device=start.device, dtype=start.dtype)
    low = torch.maximum(rearrange(start, "b g -> b g 1") * number, cells)
    high = torch.minimum(rearrange(end, "b g -> b g 1") * number, cells + 1)
    return (high - low).clamp(min=0)
