"""Rectangles of patches are hidden, one after the other, until enough are (BEiT, algorithm 1).

BEiT draws rectangles in a loop. Here an image's rectangles are drawn at once, as one bit each: a patch's bits say which
of them cover it, and the lowest bit is the first that does. The rectangle in which the count is reached is cut by a
straight edge, so that every image hides exactly the same number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor

from masking.draw import MaskStrategy, Noise
from masking.mask import Grid
from masking.ratio import FixedRatio, Ratio

_FORTY_PERCENT = FixedRatio(0.4)
_NUM_BLOCKS = 32  # drawn for each image: enough to cover nine tenths of it nearly always


@dataclass(frozen=True)
class Block(MaskStrategy):
    """Hides rectangles until enough is hidden (BEiT)."""

    ratio: Ratio = _FORTY_PERCENT  # how many patches are hidden
    min_patches: int = 16  # area of the smallest rectangle, patches; the largest is all that is to be hidden
    aspect: tuple[float, float] = (0.3, 1 / 0.3)  # height over width of a rectangle

    def scores(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) float: the number of the first rectangle over a patch, and in [0, 1) the patch's place in it."""
        tall, wide, top, left = self._rectangles(grid, num_visible, noise)
        bit = 1 << torch.arange(_NUM_BLOCKS, device=top.device)
        down = torch.arange(grid.height, device=top.device)
        across = torch.arange(grid.width, device=top.device)
        rows, columns = (
            reduce(((place >= first) & (place < first + long)) * bit, "b n t -> b n", "sum")
            for place, first, long in (
                (rearrange(down, "h -> 1 h 1"), rearrange(top, "b t -> b 1 t"), rearrange(tall, "b t -> b 1 t")),
                (rearrange(across, "w -> 1 w 1"), rearrange(left, "b t -> b 1 t"), rearrange(wide, "b t -> b 1 t")),
            )
        )
        covers = rearrange(rows, "b h -> b h 1") & rearrange(columns, "b w -> b 1 w") | (1 << _NUM_BLOCKS)
        first_one = torch.frexp((covers & -covers).float()).exponent  # of 2**t it is t + 1: exact on every device
        return rearrange(first_one + self._edge(grid, noise), "b h w -> b (h w)")

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for rectangles that cannot be."""
        hidden = grid.num_patches - num_visible
        if not 1 <= self.min_patches <= hidden:
            raise ValueError(
                f"mask.min_patches={self.min_patches} with {hidden} patches to hide; it must be from 1 to {hidden}"
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"mask.aspect={self.aspect[0]},{self.aspect[1]}; it must be two ratios, 0 < low <= high")

    def _rectangles(self, grid: Grid, num_visible: int, noise: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Height, width, top and left of each image's rectangles, (B, T) float of whole patches."""
        area, shape, y, x = rearrange(noise.uniform(4 * _NUM_BLOCKS, "blocks"), "b (four t) -> four b t", four=4)
        most = grid.num_patches - num_visible
        area = self.min_patches + area * (most - self.min_patches)
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        root = torch.exp((low + shape * (high - low)) / 2)
        tall = (area.sqrt() * root).round().clamp_(1, grid.height)
        wide = (area.sqrt() / root).round().clamp_(1, grid.width)
        return tall, wide, (y * (grid.height - tall + 1)).floor(), (x * (grid.width - wide + 1)).floor()

    def _edge(self, grid: Grid, noise: Noise) -> Tensor:
        """(B, h, w) float in [0, 1) rising from one side of the grid, drawn for each image, to the other."""
        side = rearrange((noise.uniform(1, "edge") * 4).long(), "b 1 -> b 1 1")
        down = rearrange(torch.arange(grid.height, device=side.device) / grid.height, "h -> 1 h 1")
        across = rearrange(torch.arange(grid.width, device=side.device) / grid.width, "w -> 1 1 w")
        place = torch.where(side < 2, down, across)
        return torch.where(side % 2 == 0, place, 1 - 1 / max(grid.height, grid.width) - place).clamp_(0)
