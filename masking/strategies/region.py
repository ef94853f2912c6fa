"""Two ratios, one inside a region and one outside, with the total kept (after MRefM of OneRef, Xiao et al., NeurIPS 2024,
which masks 75 % inside the box of an object, grown by one patch, and 35 % outside).

There the number of hidden patches varies with the box. Here it is fixed, so that batches stay rectangular: of the n
patches of the region a share r_in is hidden, and outside r_out = (r N - r_in n) / (N - n)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masking.draw import Guide, MaskStrategy, Noise
from masking.mask import Grid, places_in_two_groups
from masking.ratio import FixedRatio, Ratio

_THREE_QUARTERS = FixedRatio(0.75)


@dataclass(frozen=True)
class Region(MaskStrategy):
    """Hides one share of a region, another outside it (after OneRef)."""

    ratio: Ratio = _THREE_QUARTERS  # how many patches are hidden in all
    inside: float = 0.9  # share of the region's patches that is hidden, as near as the total allows
    guided_by: Guide = "boxes"  # what the region is: the sample's boxes, or where the image's gradients or the objective's importance exceed their mean
    grow: int = 1  # patches by which the region is grown on every side

    def order(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) int64: the patches that stay, each group's in random order, then the others."""
        assert guidance is not None, "draw() has refused that"
        region = self.region(grid, guidance)
        num_inside = region.sum(1, keepdim=True, dtype=torch.int32)
        num_outside = grid.num_patches - num_inside
        num_hidden = grid.num_patches - num_visible
        hidden_inside = (num_inside * self.inside).round().int()
        hidden_inside = torch.minimum(torch.maximum(hidden_inside, num_hidden - num_outside), num_inside)
        hidden_inside = hidden_inside.clamp(0, num_hidden)
        drawn = noise.uniform(grid.num_patches).argsort(dim=1, stable=True)
        # Of a random order the first so many of each group stay: a running count says which these are.
        inside = region.gather(1, drawn)
        count = inside.cumsum(1, dtype=torch.int32)
        outside = torch.arange(1, grid.num_patches + 1, device=drawn.device, dtype=torch.int32) - count
        stays = inside & (count <= num_inside - hidden_inside)
        stays |= ~inside & (outside <= num_outside - (num_hidden - hidden_inside))
        return torch.empty_like(drawn).scatter_(1, places_in_two_groups(stays, num_visible), drawn)

    def region(self, grid: Grid, guidance: Tensor) -> Tensor:
        """(B, N) bool from guidance (B, N): patches a box touches, or whose importance is above the image's mean."""
        floor = 0 if self.guided_by == "boxes" else guidance.mean(1, keepdim=True)
        region, width = guidance > floor, grid.width
        begins_row = torch.arange(grid.num_patches, device=region.device) % width == 0
        for _ in range(self.grow):  # in long rows: a step aside is one place, a step down is a row of them
            taller = region.clone()
            taller[:, width:] |= region[:, :-width]
            taller[:, :-width] |= region[:, width:]
            region = taller.clone()
            region[:, 1:] |= taller[:, :-1] & ~begins_row[1:]
            region[:, :-1] |= (taller & ~begins_row)[:, 1:]
        return region

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for shares and sizes that cannot be."""
        if not 0 <= self.inside <= 1:
            raise ValueError(f"mask.inside={self.inside}; it must be a share from 0 to 1")
        if not 0 <= self.grow < max(grid.height, grid.width):
            raise ValueError(
                f"mask.grow={self.grow}; it must be from 0 to {max(grid.height, grid.width) - 1} patches on this grid"
            )
