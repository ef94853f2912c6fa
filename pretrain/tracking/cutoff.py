"""What happened to the loss where a soft mask came to its end: how far it jumped, and when it was back (Wang et al.,
"Adapting LLaMA Decoder to Vision Transformer", section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pretrain.tracking.charts import Point

_SHARE = 0.01  # of all steps are one mean,
_LEAST, _MOST = 10, 100  # but not fewer, and not more steps
_NEAR = 5  # the highest mean is looked for among the first steps after the cutoff, so many means long
_SURE = 3.0  # standard errors that a jump is above what two means differ by anyway


@dataclass(frozen=True)
class Jump:
    """The loss around a cutoff; all are means of `window` steps."""

    step: int  # the first that was trained with alpha at its end
    window: int
    before: float  # of the last steps before
    highest: float  # of steps just after
    error: float  # standard error of the difference of two such means where nothing happens
    back_after: int | None  # steps from the cutoff to the end of the first mean that is not above before; None: none is
    left: int  # steps that were made after the cutoff

    @property
    def share(self) -> float:
        """How much higher the loss was, as a share of what it was."""
        return self.highest / self.before - 1

    @property
    def is_clear(self) -> bool:
        """Whether it is more than chance."""
        return self.highest - self.before > _SURE * self.error


def cutoff_step(alpha: Sequence[Point]) -> int | None:
    """The first of the (step, alpha) points from which on alpha stays as it was not before; None where it never moved,
    or moves still."""
    if len(alpha) < 2 or alpha[-1][1] != alpha[-2][1]:
        return None
    first = len(alpha) - 1
    while first and alpha[first - 1][1] == alpha[-1][1]:
        first -= 1
    return int(alpha[first][0]) if first else None


def jump_at(loss: Sequence[Point], step: int) -> Jump | None:
    """The jump of the (step, loss) points at step; None where there are too few of them on one side."""
    values = [value for _, value in loss]
    at = next((index for index, (when, _) in enumerate(loss) if when >= step), len(loss))
    window = min(max(_LEAST, round(_SHARE * len(values))), _MOST)
    if at < 2 * window or len(values) - at < window:
        return None
    sums = list(accumulate(values, initial=0.0))

    def mean(end: int) -> float:
        return (sums[end] - sums[end - window]) / window

    before = mean(at)
    near = range(at + window, min(at + _NEAR * window, len(values)) + 1)
    peak = max(near, key=mean)
    back = next((end for end in range(peak, len(values) + 1) if mean(end) <= before), None)
    return Jump(
        step=step,
        window=window,
        before=before,
        highest=mean(peak),
        error=_noise(values[max(0, at - 10 * window) : at]) * math.sqrt(2 / window),
        back_after=None if back is None else back - at,
        left=len(values) - at,
    )


def words(jump: Jump, alpha: tuple[float, float]) -> str:
    """A sentence or two on jump; alpha is that of the step before it and of the step itself."""
    moved = f"{'rose' if alpha[1] > alpha[0] else 'fell'} from {alpha[0]:.3g} to {alpha[1]:.3g}"
    fell = f"At step {jump.step:,} the soft mask {moved}"
    ends = f"{jump.before:.4g} just before, {jump.highest:.4g} at its highest just after, {100 * jump.share:+.1f} %"
    means = f"means of {jump.window} steps"
    if not jump.is_clear:
        return f"{fell}, and no jump of the loss stands out: {ends}, is within what {means} differ by anyway."
    back = f"It was back after {jump.back_after:,} steps." if jump.back_after is not None else (
        f"It has not recovered: none of the {jump.left:,} steps since brought it back."
    )  # fmt: skip
    return f"{fell}, and the loss jumped: {ends} ({means}). {back}"


def _noise(values: Sequence[float]) -> float:
    """Standard deviation of a step's loss about its course, from the differences of neighbours."""
    steps = [(later - value) ** 2 for value, later in pairwise(values)]
    return math.sqrt(sum(steps) / (2 * len(steps)))
