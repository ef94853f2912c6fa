"""How many patches stay visible."""

from __future__ import annotations

from dataclasses import dataclass
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
