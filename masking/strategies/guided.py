"""Patches are kept, or hidden, by an importance that somebody else gives: a teacher's attention, the image's gradients.

MaskAlign (Xue et al., CVPR 2023, section 3.2) keeps patches by a draw in proportion to the teacher's attention; AttMask
(Kakogeorgiou et al., ECCV 2022, section 3.3) hides the most attended ones. Drawing without replacement in proportion to
p is a race: patch i arrives at an exponential time of rate p_i, and the first K are drawn (Efraimidis and Spirakis 2006;
the same as Gumbel-top-k on log p)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from masking.draw import Guide, MaskStrategy, Noise
from masking.mask import Grid
from masking.ratio import FixedRatio, Ratio

_THREE_QUARTERS = FixedRatio(0.75)
_LEAST = 1e-12  # importance below this counts as this: such patches are drawn last


@dataclass(frozen=True)
class Guided(MaskStrategy):
    """Keeps or hides patches by importance (MaskAlign, AttMask)."""

    ratio: Ratio = _THREE_QUARTERS  # how many patches are hidden
    guided_by: Guide = "objective"  # who gives the importance: the objective's teacher, the image's gradients, or the sample's boxes
    keep: Literal["high", "low"] = "high"  # important patches stay (MaskAlign), or they are hidden (AttMask)
    choice: Literal["multinomial", "top"] = "multinomial"  # drawn in proportion to importance, or strictly the most important
    temperature: float = 1.0  # of the draw: importance counts to the power 1 / temperature

    def scores(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) float: minus a patch's arrival time, or its importance; negated where important patches are hidden."""
        assert guidance is not None, "draw() has refused that"
        importance = guidance.float()
        if self.choice == "multinomial":
            rate = importance.clamp_min(_LEAST).pow(1 / self.temperature)
            importance = torch.log1p(-noise.uniform(grid.num_patches)) / rate
        return importance if self.keep == "high" else -importance

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for a temperature that draws nothing."""
        if not self.temperature > 0:
            raise ValueError(f"mask.temperature={self.temperature}; it must be above 0")

    @classmethod
    def variants(cls, ratio: Ratio) -> dict[str, MaskStrategy]:
        """The three ways papers use it."""
        return {
            "Guided: drawn by importance": cls(ratio=ratio),
            "Guided: most important kept": cls(ratio=ratio, choice="top"),
            "Guided: most important hidden": cls(ratio=ratio, choice="top", keep="low"),
        }
