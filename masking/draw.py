"""From a strategy and a step to masks. Every number drawn for an image is a hash of (seed, step, row of the global
batch): not of rank, world size, accumulation or device, and no state is carried."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from masking.mask import Grid, Mask
from masking.ratio import Ratio
from masking.rng import generator, prf, prf_array

Guide = Literal["objective", "gradient", "boxes"]  # who says how important a patch is

# splitmix64 (Steele, Lea, Flood 2014) as int64, the only integers every device multiplies: they wrap alike everywhere.
_STEP, _FIRST, _SECOND = (
    value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # fmt: skip


@dataclass(frozen=True)
class Noise:
    """Random numbers for some rows of the global batch. Each is named by (key, name, row, index): whoever asks for a
    row gets the same ones, bit for bit, on any device."""

    key: int  # of the step's draw
    rows: Tensor  # (B,) int64, on the device where numbers are wanted
    host_rows: Tensor  # the same on the CPU, for choices that decide about shapes

    def uniform(self, num: int, name: str = "") -> Tensor:
        """(B, num) float32, multiples of 2**-24 in [0, 1). Draws of other names are independent of each other."""
        return self.uniform_at(rearrange(torch.arange(num, device=self.rows.device), "n -> 1 n"), name)

    def uniform_at(self, index: Tensor, name: str = "") -> Tensor:
        """Those of `uniform` at index (B, n) or (1, n) int64, whatever else is asked for: (B, n) float32."""
        begin = _mixed(self.rows * _STEP + prf(self.key, name))
        bits = _mixed(rearrange(begin, "b -> b 1") + index * _STEP)
        return ((bits >> 40) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)

    def normal_at(self, index: Tensor, name: str = "") -> Tensor:
        """Standard normal numbers at index (B, n) or (1, n) int64, (B, n) float32: Box and Muller's cosine half."""
        radius = self.uniform_at(2 * index, name).add_(2.0**-25).log_().mul_(-2).sqrt_()
        return self.uniform_at(2 * index + 1, name).mul_(2 * math.pi).cos_().mul_(radius)

    def host_uniform(self, name: str) -> np.ndarray:
        """One number a row in [0, 1), (B,) float64 on the CPU: known without waiting for the device."""
        return prf_array(self.key, name, self.host_rows.numpy()) * 2.0**-63

    def take(self, chosen: Tensor) -> Noise:
        """The same numbers for some of these rows, chosen (C,) int64 on the CPU."""
        return Noise(self.key, self.rows[chosen.to(self.rows.device, non_blocking=True)], self.host_rows[chosen])


class MaskStrategy:
    """Which patches stay visible. A strategy is a frozen dataclass in `masking/strategies/`; its fields are its config,
    and it gives either `scores` or `order`."""

    ratio: Ratio  # how many patches are hidden

    @property
    def guided_by(self) -> Guide | None:
        """Whose importance of patches it wants: "objective" (a teacher), "gradient" (of the image), "boxes" (of the
        sample), or None."""
        return None

    def scores(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) float for noise's rows: higher stays visible, ties go to the lower id."""
        raise NotImplementedError(f"{type(self).__name__} has neither scores nor order")

    def order(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) int64: patch ids from most to least deserving to stay, for noise's rows."""
        return self.scores(grid, num_visible, noise, guidance).argsort(dim=1, descending=True, stable=True)

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError, in one sentence, for settings that cannot be meant on this grid."""

    @classmethod
    def variants(cls, ratio: Ratio) -> dict[str, MaskStrategy]:
        """What the gallery shows of it, by name; the first is its defaults with this ratio."""
        return {cls.__name__: cls(ratio=ratio)}  # type: ignore[call-arg]

    def at(self, epoch: float) -> MaskStrategy:
        """The strategy in force after so many passes over the data."""
        return self


def draw(
    strategy: MaskStrategy,
    grid: Grid,
    rows: Tensor,
    seed: int,
    step: int,
    guidance: Tensor | None = None,
    *,
    epoch: float = 0.0,
    device: torch.device | str = "cpu",
) -> Mask:
    """The masks of rows (B,) int64 on the CPU, of the global batch in the given step, on device.

    guidance is the (B, N) float importance of these rows' patches; it must be there exactly if the strategy is guided.
    """
    strategy = strategy.at(epoch)
    name = type(strategy).__name__
    if strategy.guided_by is not None and guidance is None:
        raise ValueError(
            f"{name} is guided by {strategy.guided_by!r} and got no guidance: an importance (B, N) of every patch"
        )
    if strategy.guided_by is None and guidance is not None:
        raise ValueError(f"{name} takes no guidance, and some was given; a strategy that uses it is Guided or Region")
    num_visible = strategy.ratio.num_visible(grid, generator(seed, "ratio", step))
    noise = named_noise(rows, seed, "mask", step, device=device)
    return Mask.from_order(strategy.order(grid, num_visible, noise, guidance), num_visible)


def named_noise(rows: Tensor, seed: int, *path: int | str, device: torch.device | str = "cpu") -> Noise:
    """The numbers of rows (B,) int64 on the CPU, of the draw that seed and path name, on device."""
    return Noise(prf(seed, *path), rows.to(device, non_blocking=True), rows)


def _mixed(values: Tensor) -> Tensor:
    """splitmix64's finaliser of values, int64; in place, so give it a tensor of its own."""
    values ^= (values >> 30) & ((1 << 34) - 1)  # int64 shifts copy the sign: the mask makes them logical
    values *= _FIRST
    values ^= (values >> 27) & ((1 << 37) - 1)
    values *= _SECOND
    values ^= (values >> 31) & ((1 << 33) - 1)
    return values
