"""One rectangle stays visible and may lie across the edge (CAPI, Darcet et al. 2025: inverse block masking with roll).

A rectangle inside the grid, then a random roll, is a rectangle anywhere on the torus; it is grown here from a random
point until it holds exactly the number of patches that stay, so every position is equally likely to be hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from masking.draw import MaskStrategy, Noise
from masking.mask import Grid
from masking.ratio import FixedRatio, Ratio

_SIXTY_FIVE_PERCENT = FixedRatio(0.65)
_TIE = 1e-4


@dataclass(frozen=True)
class InverseBlock(MaskStrategy):
    """Keeps one rectangle, wrapped around the edges (CAPI)."""

    ratio: Ratio = _SIXTY_FIVE_PERCENT  # how many patches are hidden
    aspect: tuple[float, float] = (0.5, 2.0)  # height over width of the rectangle that stays

    def scores(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) float: minus the distance to the rectangle's middle, in units of its sides, around the edges."""
        y, x, shape = noise.uniform(3).unbind(1)
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        root = torch.exp((low + shape * (high - low)) / 2)
        down = _around(grid.height, y) / rearrange(root, "b -> b 1")
        across = _around(grid.width, x) * rearrange(root, "b -> b 1")
        down, across = rearrange(down, "b h -> b h 1"), rearrange(across, "b w -> b 1 w")
        # Of the last row or column, which the count may cut, what is nearest to the middle stays, on no preferred side.
        away = torch.maximum(down, across) + _TIE * torch.minimum(down, across)
        return -rearrange(away, "b h w -> b (h w)")

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for shapes that cannot be."""
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"mask.aspect={self.aspect[0]},{self.aspect[1]}; it must be two ratios, 0 < low <= high")


def _around(length: int, share: Tensor) -> Tensor:
    """(B, length) float: how far each place is from share * length, the shorter way around."""
    away = (torch.arange(length, device=share.device) - rearrange(share, "b -> b 1") * length).abs_()
    return torch.minimum(away, length - away)
