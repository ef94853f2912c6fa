"""What a single setting may be, and the sentence that refuses what it may not be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pretrain.errors import ConfigError

Range = tuple[str, Callable[[Any], bool]]  # in words, and as a test of a value

POSITIVE: Range = ("above 0", lambda v: v > 0)
AT_LEAST_0: Range = ("0 or more", lambda v: v >= 0)
AT_LEAST_1: Range = ("1 or more", lambda v: v >= 1)
SHARE: Range = ("from 0 to 1", lambda v: 0 <= v <= 1)
POSITIVE_SHARE: Range = ("above 0 and at most 1", lambda v: 0 < v <= 1)
BELOW_1: Range = ("from 0 to below 1", lambda v: 0 <= v < 1)
RANGE_IN_1: Range = ("two shares, 0 < low <= high <= 1", lambda v: 0 < v[0] <= v[1] <= 1)


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Raises ConfigError for the first of ranges whose value lies outside; None and missing values pass. prefix stands
    before the names in what is said: "objective."."""
    for name, (words, holds) in ranges.items():
        if values.get(name) is not None and not holds(values[name]):
            raise ConfigError(f"{prefix}{name}={_text(values[name])}; it must be {words}")


def check_width(prefix: str, width: int, heads: int) -> None:
    """Raises ConfigError unless a transformer with sin-cos positions can be width wide and have so many heads. prefix
    is what stands before "width" and "heads" in the settings' names: "backbone.", "objective.decoder_"."""
    if width % heads:
        raise ConfigError(f"{prefix}heads={heads} does not divide {prefix}width={width}")
    if width % 4:
        raise ConfigError(f"{prefix}width={width}; sin-cos positions need a multiple of 4")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
