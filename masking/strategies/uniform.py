"""Every patch is equally likely to be hidden (MAE, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from masking.draw import MaskStrategy, Noise
from masking.mask import Grid
from masking.ratio import FixedRatio, Ratio

_THREE_QUARTERS = FixedRatio(0.75)


@dataclass(frozen=True)
class Uniform(MaskStrategy):
    """Hides every patch with the same chance (MAE)."""

    ratio: Ratio = _THREE_QUARTERS  # how many patches are hidden

    def scores(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) float in [0, 1), independent of each other."""
        return noise.uniform(grid.num_patches)
