"""What a few seeds can say: means and paired differences with t-intervals, areas under curves, steps to a target."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]  # (step, score), steps ascending
Interval = dict[str, float | None]  # mean, plus_minus

# 97.5 % quantile of Student's t by degrees of freedom; beyond the table the last one, which is too wide
_STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float]) -> Interval:
    """Mean, and half the width of its 95 % interval: None for a single value, which has no spread to judge by."""
    if len(values) < 2:
        return {"mean": values[0], "plus_minus": None}
    half = _STUDENT[min(len(values) - 1, 9)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "plus_minus": half}


def verdict(difference: Interval) -> str:
    """What an interval of differences shows, in words."""
    mean, half = difference["mean"], difference["plus_minus"]
    if half is None:
        return "one seed: nothing can be said"
    if mean is None or abs(mean) <= half:
        return "no effect seen"
    return "higher" if mean > 0 else "lower"


def rauc(curve: Curve, base: Curve) -> float | None:
    """Area under curve over the area under base between their common steps, each score less base's first one.

    The floor is what the untrained encoder reaches. None where there is no area to divide by."""
    steps = sorted({step for step, _ in curve} & {step for step, _ in base})
    floor = base[0][1]
    below = _area([(step, score - floor) for step, score in base if step in steps])
    above = _area([(step, score - floor) for step, score in curve if step in steps])
    return above / below if below > 0 else None


def steps_to(curve: Curve, target: float) -> float | None:
    """Step at which the curve first reaches target, between two points on their line; None: it never does."""
    previous: tuple[float, float] | None = None
    for step, score in curve:
        if score >= target:
            if previous is None:
                return step
            return previous[0] + (step - previous[0]) * (target - previous[1]) / (score - previous[1])
        previous = (step, score)
    return None


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Correlation of ranks, equal values sharing the mean of theirs. None where one side is the same everywhere."""
    first, second = (_ranks(side) for side in zip(*pairs))
    return statistics.correlation(first, second) if len(set(first)) > 1 and len(set(second)) > 1 else None


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def _area(points: Curve) -> float:
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
