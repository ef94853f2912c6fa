"""Each image of a batch is masked by one of several strategies, drawn for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from masking.draw import Guide, MaskStrategy, Noise
from masking.mask import Grid
from masking.ratio import Ratio
from masking.strategies.block import Block
from masking.strategies.uniform import Uniform

_UNIFORM_AND_BLOCK = (Uniform(), Block(ratio=Uniform().ratio))


@dataclass(frozen=True)
class Mixture(MaskStrategy):
    """Draws one of several strategies for each image."""

    strategies: tuple[MaskStrategy, ...] = _UNIFORM_AND_BLOCK  # all with the same ratio
    weights: tuple[float, ...] = ()  # how often each is drawn, in proportion; none given: equally often

    @property
    def ratio(self) -> Ratio:  # type: ignore[override]
        """That of every strategy in it; `check` refuses to have none."""
        return self.strategies[0].ratio if self.strategies else _UNIFORM_AND_BLOCK[0].ratio

    @property
    def guided_by(self) -> Guide | None:
        """What those of its strategies want that want any."""
        return next((part.guided_by for part in self.strategies if part.guided_by is not None), None)

    def order(self, grid: Grid, num_visible: int, noise: Noise, guidance: Tensor | None) -> Tensor:
        """(B, N) int64, each row by the strategy drawn for it. The draw is made on the CPU: how many images each
        strategy gets is known without waiting for the device."""
        bounds = np.cumsum(self.weights or [1.0] * len(self.strategies))
        drawn = np.searchsorted(bounds / bounds[-1], noise.host_uniform("mixture"), side="right")
        orders = []
        for index, part in enumerate(self.strategies):
            chosen = torch.from_numpy(np.flatnonzero(drawn == index))
            importance = None
            if guidance is not None and part.guided_by is not None:
                importance = guidance.index_select(0, chosen.to(guidance.device, non_blocking=True))
            orders.append(part.order(grid, num_visible, noise.take(chosen), importance))
        places = torch.from_numpy(drawn.argsort(kind="stable").argsort())
        return torch.cat(orders).index_select(0, places.to(noise.rows.device, non_blocking=True))

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for parts that do not go together, and for what each of them refuses."""
        if len(self.strategies) < 2:
            raise ValueError(f"mask.strategies has {len(self.strategies)} entries; a Mixture is of two or more")
        if self.weights and (len(self.weights) != len(self.strategies) or min(self.weights) <= 0):
            raise ValueError(
                f"mask.weights={_text(self.weights)} for {len(self.strategies)} strategies; give one above 0 for each, "
                "or none"
            )
        for index, part in enumerate(self.strategies):
            if part.ratio != self.ratio:
                raise ValueError(
                    f"mask.strategies: number {index} has the ratio {part.ratio} and number 0 has {self.ratio}; images of "
                    "one batch hide the same number of patches, so give all the same"
                )
            if part.guided_by not in (None, self.guided_by):
                raise ValueError(
                    f"mask.strategies are guided by {self.guided_by!r} and by {part.guided_by!r}; a Mixture takes its "
                    "guidance from one of them"
                )
            part.check(grid, num_visible)

    @classmethod
    def variants(cls, ratio: Ratio) -> dict[str, MaskStrategy]:
        """Uniform and blocks, half and half."""
        return {"Mixture: uniform, block": cls(tuple(replace(part, ratio=ratio) for part in _UNIFORM_AND_BLOCK))}

    def at(self, epoch: float) -> Mixture:
        """With every part as it is then."""
        parts = tuple(part.at(epoch) for part in self.strategies)
        return self if parts == self.strategies else replace(self, strategies=parts)


def _text(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
