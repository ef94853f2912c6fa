"""Two ratios, one inside a region and one outside, with the total kept (after MRefM of OneRef, Xiao et al., NeurIPS 2024,
which masks 75 % inside the box of an object, grown by one patch, and 35 % outside).

There the number of hidden patches varies with the box. Here it is fixed, so that batches stay rectangular: of the n
patches of the region a share r_in is hidden, and outside r_out = (r N - r_in n) / (N - n)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from masking.draw import Guide, MaskStrategy, Noise
from masking.mask import Grid
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
        num_inside = region.sum(1, keepdim=True)
        num_outside = grid.num_patches - num_inside
        num_hidden = grid.num_patches - num_visible
        hidden_inside = (num_inside * self.inside).round().long()
        hidden_inside = torch.minimum(torch.maximum(hidden_inside, num_hidden - num_outside), num_inside)
        hidden_inside = hidden_inside.clamp(0, num_hidden)
        drawn = noise.uniform(grid.num_patches).argsort(dim=1, stable=True)
        # Of a random order the first so many of each group stay: a running count says which these are.
        inside = region.gather(1, drawn)
        before = torch.arange(grid.num_patches, device=drawn.device)
        count = inside.cumsum(1)
        stays_inside = inside & (count <= num_inside - hidden_inside)
        stays = stays_inside | ~inside & (before + 1 - count <= num_outside - (num_hidden - hidden_inside))
        kept = stays.cumsum(1)
        return torch.empty_like(drawn).scatter_(1, torch.where(stays, kept - 1, num_visible + before - kept), drawn)

    def region(self, grid: Grid, guidance: Tensor) -> Tensor:
        """(B, N) bool from guidance (B, N): patches a box touches, or whose importance is above the image's mean."""
        floor = 0 if self.guided_by == "boxes" else guidance.mean(1, keepdim=True)
        region = rearrange(guidance > floor, "b (h w) -> b h w", h=grid.height)
        for _ in range(self.grow):
            taller = region.clone()
            taller[:, 1:] |= region[:, :-1]
            taller[:, :-1] |= region[:, 1:]
            region = taller.clone()
            region[:, :, 1:] |= taller[:, :, :-1]
            region[:, :, :-1] |= taller[:, :, 1:]
        return rearrange(region, "b h w -> b (h w)")

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for shares and sizes that cannot be."""
        if not 0 <= self.inside <= 1:
            raise ValueError(f"mask.inside={self.inside}; it must be a share from 0 to 1")
        if not 0 <= self.grow < max(grid.height, grid.width):
            raise ValueError(
                f"mask.grow={self.grow}; it must be from 0 to {max(grid.height, grid.width) - 1} patches on this grid"
            )
