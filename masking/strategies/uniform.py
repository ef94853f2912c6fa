"""Every patch is equally likely to be hidden (MAE, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from masking.draw import Rows
from masking.mask import Grid
from masking.ratio import FixedRatio, Ratio

_THREE_QUARTERS = FixedRatio(0.75)


@dataclass(frozen=True)
class Uniform:
    """Independent uniform noise per patch."""

    ratio: Ratio = _THREE_QUARTERS  # how many patches are hidden

    needs_guidance: ClassVar[bool] = False

    def scores(self, grid: Grid, rows: Rows, rng: torch.Generator, guidance: Tensor | None) -> Tensor:
        """(B, N) float in [0, 1), independent of each other."""
        return rows.noise(grid.num_patches, rng)
