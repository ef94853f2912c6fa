"""How many unusable samples a run bears before it stops: a share of the latest ones, and a number in a row."""

from __future__ import annotations

from collections import deque

from pretrain.errors import DataError
from pretrain.types import BadSample

_WINDOW = 100_000  # samples the share is taken of


class ErrorBudget:
    """Counts the bad samples of all ranks. Fed with counts that all agree on, all ranks stop at the same step."""

    def __init__(self, ratio: float, run: int) -> None:
        self._ratio, self._run = ratio, run
        self._recent: deque[tuple[int, int]] = deque()  # (samples seen by the end of a step, bad ones in it)
        self._in_a_row = 0
        self._last_step = -1

    def check(self, step: int, num_samples: int, num_bad: int, example: BadSample | None = None) -> None:
        """Takes one step of the global batch; DataError where the budget is spent. Steps without bad samples may be
        left out. The share is of 100,000 samples, also before there were as many; a row is made of whole steps."""
        if num_bad:
            self._recent.append(((step + 1) * num_samples, num_bad))
        while self._recent and self._recent[0][0] <= (step + 1) * num_samples - _WINDOW:
            self._recent.popleft()
        whole = num_bad == num_samples
        continued = self._in_a_row if step == self._last_step + 1 else 0
        self._in_a_row, self._last_step = (continued + num_bad if whole else 0), step
        bad = sum(count for _, count in self._recent)
        if bad > self._ratio * _WINDOW:
            seen = min((step + 1) * num_samples, _WINDOW)
            raise DataError(
                f"{bad} of the last {seen} samples are unusable, and data.error_ratio={self._ratio:g} allows "
                f"{int(self._ratio * _WINDOW)} in {_WINDOW}{_such_as(example)}; `lacuna index` finds and excludes them"
            )
        if self._in_a_row > self._run:
            raise DataError(
                f"{self._in_a_row} samples in a row are unusable, and data.error_run={self._run} are allowed"
                f"{_such_as(example)}; is this the right data?"
            )


def _such_as(example: BadSample | None) -> str:
    return "" if example is None else f" (such as {example.key!r} in {example.shard}: {example.reason})"
