"""Strategies that follow each other over the passes over the data, as ColorMAE's colours may (its code changes the noise
at chosen epochs; the paper reports no result of it)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from masking.draw import Guide, MaskStrategy
from masking.mask import Grid
from masking.ratio import FixedRatio, Ratio
from masking.strategies.block import Block
from masking.strategies.uniform import Uniform

_THREE_QUARTERS = FixedRatio(0.75)


@dataclass(frozen=True)
class Phase:
    """A strategy and when it begins."""

    epoch: float  # passes over the data after which it is in force
    strategy: MaskStrategy  # what then masks


_UNIFORM_THEN_BLOCK = (Phase(0.0, Uniform()), Phase(1.0, Block(ratio=_THREE_QUARTERS)))


@dataclass(frozen=True)
class Schedule(MaskStrategy):
    """One strategy after the other, by epoch."""

    phases: tuple[Phase, ...] = _UNIFORM_THEN_BLOCK  # in the order of their epochs, the first from 0 on

    @property
    def ratio(self) -> Ratio:  # type: ignore[override]
        """That of the first phase; `check` refuses to have none."""
        return self.phases[0].strategy.ratio if self.phases else _THREE_QUARTERS

    @property
    def guided_by(self) -> Guide | None:
        """What any of its phases wants."""
        return next((phase.strategy.guided_by for phase in self.phases if phase.strategy.guided_by is not None), None)

    def at(self, epoch: float) -> MaskStrategy:
        """The strategy of the last phase that has begun."""
        begun = [phase for phase in self.phases if phase.epoch <= epoch]
        return begun[-1].strategy.at(epoch)

    def check(self, grid: Grid, num_visible: int) -> None:
        """ValueError for phases out of order, and for what each of them refuses."""
        epochs = [phase.epoch for phase in self.phases]
        if not epochs or epochs[0] != 0 or any(later <= earlier for earlier, later in pairwise(epochs)):
            raise ValueError(f"mask.phases begin at the epochs {epochs}; the first must begin at 0 and each after the last")
        for phase in self.phases:
            if phase.strategy.guided_by not in (None, self.guided_by):
                raise ValueError(
                    f"mask.phases are guided by {self.guided_by!r} and by {phase.strategy.guided_by!r}; a Schedule takes "
                    "its guidance from one of them"
                )
            phase.strategy.check(grid, num_visible)

    @classmethod
    def variants(cls, ratio: Ratio) -> dict[str, MaskStrategy]:
        """None: the gallery shows what a schedule is made of."""
        return {}
