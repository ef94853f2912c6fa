"""From a strategy and a step to this rank's masks: the draw is made for the global batch, a rank takes its rows.

So the masks of a step depend on the seed and the step alone, not on rank, world size or accumulation. (They do depend
on the kind of device: torch's generators of CPU and CUDA give different numbers.)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from masking.mask import Grid, Mask
from masking.ratio import Ratio
from masking.rng import generator


@dataclass(frozen=True)
class Rows:
    """Which rows of the global batch a micro-batch holds."""

    total: int  # images in the global batch
    ids: Tensor  # (B,) int64, their rows

    def take(self, values: Tensor) -> Tensor:
        """This micro-batch's rows of values (total, ...): (B, ...)."""
        return values.index_select(0, self.ids.to(values.device, non_blocking=True))

    def noise(self, num: int, rng: torch.Generator) -> Tensor:
        """These rows of noise drawn for the global batch: (B, num) float32, uniform in [0, 1), on rng's device."""
        return self.take(torch.rand(self.total, num, generator=rng, device=rng.device))


class MaskStrategy(Protocol):
    """A frozen dataclass in `masking/strategies/`; its fields are its config."""

    needs_guidance: ClassVar[bool]  # True: asks the objective for an importance per patch

    @property
    def ratio(self) -> Ratio:
        """How many patches stay visible."""
        ...

    def scores(self, grid: Grid, rows: Rows, rng: torch.Generator, guidance: Tensor | None) -> Tensor:
        """(B, N) float on rng's device; higher stays visible. Noise is drawn for rows.total images, then taken."""
        ...


def draw(
    strategy: MaskStrategy,
    grid: Grid,
    rows: Rows,
    seed: int,
    step: int,
    guidance: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Mask:
    """The masks of rows in the given step, on device. guidance is (B, N) float for these rows, or None."""
    if strategy.needs_guidance and guidance is None:
        name = type(strategy).__name__
        raise ValueError(f"{name} needs guidance, an importance per patch, and this objective gives none")
    num_visible = strategy.ratio.num_visible(grid, generator(seed, "ratio", step))
    scores = strategy.scores(grid, rows, generator(seed, "mask", step, device=device), guidance)
    return Mask.cut(scores, num_visible)
