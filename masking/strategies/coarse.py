"""Whole units of patches are hidden together (SimMIM, section 3.2: units of 32 pixels, whatever the patch size)."""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from masking.draw import MaskStrategy, Noise
from masking.mask import Grid
from masking.ratio import FixedRatio, Ratio

_SIXTY_PERCENT = FixedRatio(0.6)


@dataclass(frozen=True)
class Coarse(MaskStrategy):
    """Hides whole squares of patches at random (SimMIM)."""

    ratio: Ratio = _SIXTY_PERCENT  # how many patches are hidden; one unit an image is cut where units do not divide that number
    unit: int = 2  # side of a unit, patches: 2 patches of 16 pixels are SimMIM's 32

    def order(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) int64: unit by unit in random order, the patches of a unit in random order too, so that the unit which
        the count cuts prefers no side. Units at the right and lower edge may be cut off by it."""
        height, width = self._units(grid)
        units = rearrange((noise.uniform(height * width, "units") * 2**24).long(), "b (h w) -> b h w", h=height)
        patches = units.repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2)
        patches = rearrange(patches[:, : grid.height, : grid.width], "b h w -> b (h w)")
        places = (noise.uniform(grid.num_patches, "patches") * 2**24).long()
        return ((patches << 24) + places).argsort(dim=1, stable=True)

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for units that leave nothing to choose."""
        height, width = self._units(grid) if self.unit >= 1 else (0, 0)
        if height * width < 2:
            longest = max(grid.height, grid.width) - 1
            raise ValueError(
                f"mask.unit={self.unit} on a grid of {grid.height} x {grid.width} patches; it must be from 1 to {longest}"
            )

    def _units(self, grid: Grid) -> tuple[int, int]:
        return -(-grid.height // self.unit), -(-grid.width // self.unit)
