"""Which of a run's many steps are shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def frames(steps: Sequence[T], limit: int) -> list[T]:
    """At most limit of steps, which ascend: the first and the last among them, and denser at the start, where most
    changes."""
    if len(steps) <= limit:
        return list(steps)
    last = len(steps) - 1
    places = {round((last + 1) ** (i / (limit - 1)) - 1) for i in range(limit)}
    for place in range(last):  # small powers may have met in one place
        if len(places) == limit:
            break
        places.add(place)
    return [steps[place] for place in sorted(places)]
