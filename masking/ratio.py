"""How many patches stay visible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import torch

from masking.mask import Grid


class Ratio(Protocol):
    """A share of patches to hide: one number of visible patches for the whole batch of a step."""

    def num_visible(self, grid: Grid, rng: torch.Generator) -> int:
        """K, drawn on the CPU so that shapes are known without waiting for the device."""
        ...


@dataclass(frozen=True)
class FixedRatio:
    """The same share in every step (MAE, section 3)."""

    hidden: float = 0.75  # share of the patches that is hidden, between 0 and 1

    def num_visible(self, grid: Grid, rng: torch.Generator) -> int:
        """K: the visible share of the grid rounded down, as in MAE; nothing is drawn."""
        return int(grid.num_patches * (1 - self.hidden) + 1e-6)  # 1 - 0.9 is a little less than 0.1


@dataclass(frozen=True)
class TruncatedNormalRatio:
    """A share drawn anew for each step, the same for its whole batch (MAGE, section 3.1: mode 0.55 in 0.5 to 1, mean
    0.694; MAR, section 4: mode 1 in 0.7 to 1, mean 0.867)."""

    mode: float = 0.55  # where a normal law not cut off has its middle
    std: float = 0.25  # its deviation
    low: float = 0.5  # the least share that is hidden
    high: float = 1.0  # the largest

    def share(self, rng: torch.Generator) -> float:
        """The share that is hidden, by the inverse of the law's distribution."""
        normal = NormalDist(self.mode, self.std)
        low, high = normal.cdf(self.low), normal.cdf(self.high)
        drawn = torch.rand((), generator=rng, dtype=torch.float64).item()
        middle = min(max(low + drawn * (high - low), 1e-12), 1 - 1e-12)
        return min(max(normal.inv_cdf(middle), self.low), self.high)

    def num_visible(self, grid: Grid, rng: torch.Generator) -> int:
        """K: what the hidden share, rounded up to whole patches, leaves; 0 is possible where high is 1."""
        return grid.num_patches - math.ceil(grid.num_patches * self.share(rng) - 1e-9)
