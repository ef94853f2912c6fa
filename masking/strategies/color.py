"""Noise of one colour decides what is visible (Hinojosa, Liu, Ghanem, "ColorMAE: Exploring data-independent masking
strategies in Masked AutoEncoders", ECCV 2024, section 3); nothing else differs from MAE.

As there: a window of a noise plane, one value a patch, mirrored or not along each axis, and the largest values stay
visible. Otherwise than there: every image has its own plane, window and mirroring (there a pass over the planes shares
one window and one mirroring); no window is divided by its largest value, which would turn the order round where that
is negative; and a second independent window is added at a small weight, since 64 planes have only 15 million windows and
a long run draws more masks than that. The statistics of masks are those of a single window to within 1 %."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from masking.draw import MaskStrategy, Noise
from masking.mask import Grid
from masking.planes import SIGMAS, Color, PlaneRecipe, planes_on, read_noise
from masking.ratio import FixedRatio, Ratio

_THREE_QUARTERS = FixedRatio(0.75)
_MANY = 1024  # planes, and patches in the side of one, beyond which memory is surely not meant


@dataclass(frozen=True)
class ColorNoise(MaskStrategy):
    """Keeps the peaks of coloured noise (ColorMAE)."""

    ratio: Ratio = _THREE_QUARTERS  # how many patches are hidden
    color: Color = "green"  # red: large holes; blue: evenly spread; green: middle-sized clusters; purple: small and large, nothing between; white: as Uniform
    sigmas: tuple[float, ...] | None = None  # standard deviations of the blur, patches: one for red and blue, two for green and purple; None: 1.0, and 0.5,2.0
    passes: int = 5  # how often noise is filtered and ranked; more make its colour purer
    num_planes: int = 64  # planes of noise
    side: int = 256  # side of a plane, patches
    seed: int = 0  # of the planes; which windows an image gets follows from the run's seed
    keep: Literal["largest", "smallest"] = "largest"  # values that stay visible
    second: float = 0.2  # weight of a second window, so that masks do not repeat; 0: one window, as in the paper
    file: str | None = None  # an .npz file with planes [L, M, N] of your own, in the place of color, sigmas, passes, num_planes, side and seed

    def scores(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) float: ranks in the planes; negated where the smallest stay."""
        planes = planes_on(self._source(), noise.rows.device)
        first, second = noise.uniform(10).tensor_split(2, dim=1)
        window = _windows(planes, grid, first)
        if self.second:
            window = window + self.second * _windows(planes, grid, second)
        return window if self.keep == "largest" else -window

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for noise that cannot be made or read, or is smaller than the grid."""
        if self.second < 0:
            raise ValueError(f"mask.second={self.second}; it must be 0 or more")
        if self.file is not None:
            self._check_file(grid)
            return
        least = max(grid.height, grid.width)
        for name, value, low, high in (
            ("passes", self.passes, 1, 100), ("num_planes", self.num_planes, 1, _MANY), ("side", self.side, least, _MANY),
        ):  # fmt: skip
            if not low <= value <= high:
                raise ValueError(f"mask.{name}={value}; it must be from {low} to {high}")
        wanted = len(SIGMAS[self.color])
        sigmas = self._sigmas()
        rising = all(low < high for low, high in pairwise(sigmas))
        if len(sigmas) != wanted or not all(0 < sigma <= self.side / 8 for sigma in sigmas) or not rising:
            words = ("none", "one width", "two widths, the smaller first,")[wanted]
            raise ValueError(
                f"mask.sigmas={','.join(map(str, sigmas))} for mask.color={self.color}; it takes {words} above 0 and at "
                f"most an eighth of mask.side={self.side}"
            )

    @classmethod
    def variants(cls, ratio: Ratio) -> dict[str, MaskStrategy]:
        """Every colour; white, which is as uniform noise, last."""
        colors: tuple[Color, ...] = ("green", "blue", "red", "purple", "white")
        return {f"ColorNoise: {color}": cls(ratio=ratio, color=color) for color in colors}

    def _check_file(self, grid: Grid) -> None:
        assert self.file is not None
        touched = [
            f"mask.{name}" for name, default in
            (("color", "green"), ("sigmas", None), ("passes", 5), ("num_planes", 64), ("side", 256), ("seed", 0))
            if getattr(self, name) != default
        ]  # fmt: skip
        if touched:
            raise ValueError(f"{touched[0]} has no effect on planes from mask.file={self.file}; give one or the other")
        _, height, width = read_noise(self.file).shape
        if height < grid.height or width < grid.width:
            raise ValueError(
                f"mask.file={self.file} holds planes of {height} x {width}; they must be at least as large as the grid of "
                f"{grid.height} x {grid.width} patches"
            )

    def _sigmas(self) -> tuple[float, ...]:
        return SIGMAS[self.color] if self.sigmas is None else self.sigmas

    def _source(self) -> PlaneRecipe | str:
        if self.file is not None:
            return self.file
        return PlaneRecipe(self.color, self._sigmas(), self.passes, self.num_planes, self.side, self.seed)


def _windows(planes: Tensor, grid: Grid, draws: Tensor) -> Tensor:
    """A window of planes (L, M, N) for each row of draws (B, 5) in [0, 1): (B, N) float32. The draws choose the plane,
    the window's place, and whether it is mirrored up-down and left-right. One gather of B * N values."""
    num, tall, wide = planes.shape
    spans = (num, tall - grid.height + 1, wide - grid.width + 1, 2, 2)  # numbers: a tensor of them would be waited for
    plane, top, left, flip_rows, flip_columns = (
        (draws[:, index : index + 1] * span).long() for index, span in enumerate(spans)
    )
    down = torch.arange(grid.height, device=draws.device)
    across = torch.arange(grid.width, device=draws.device)
    rows = top + torch.where(flip_rows == 1, grid.height - 1 - down, down)
    columns = left + torch.where(flip_columns == 1, grid.width - 1 - across, across)
    starts = (plane * tall + rows) * wide
    places = rearrange(starts, "b h -> b h 1") + rearrange(columns, "b w -> b 1 w")
    window = planes.reshape(-1).index_select(0, places.reshape(-1))  # four times as fast as take
    return rearrange(window.float(), "(b n) -> b n", n=grid.num_patches)
