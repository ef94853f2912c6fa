"""What every campaign gives back, whatever it did: a campaign is `campaign(number, first=0)` and runs cases first to
first + number - 1, the same ones for ever, so that the tests run the first few and benchmarks/goals.py all of them.

    {"tried": cases run, "failed": cases that missed, "failures": the first of those in words, ...}

Whatever else is counted stands beside these. Counts of two slices are added; what is called worst_* or all_* is the
largest met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Counts = dict[str, Any]
_KEPT = 10  # failures that are told in words


def counted(tried: int, failures: Sequence[str], **more: Any) -> Counts:
    """The result of a campaign: one entry of failures for each case that missed."""
    return {"tried": tried, "failed": len(failures), "failures": list(failures[:_KEPT]), **more}


def merged(first: Counts, second: Counts) -> Counts:
    """Two slices as one."""
    both = dict(first)
    for name, value in second.items():
        if name not in both:
            both[name] = value
        elif name == "failures":
            both[name] = (both[name] + value)[:_KEPT]
        elif name.startswith(("worst_", "all_")):
            both[name] = max(both[name], value)
        else:
            both[name] += value
    return both
