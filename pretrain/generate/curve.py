"""Quality against what it costs: a line a sampler, a point a number of steps, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from pretrain.errors import ConfigError, NumericalError
from pretrain.tracking.charts import Point, Scale, short, ticks
from pretrain.tracking.panels import save
from pretrain.tracking.pen import INK, ORANGE, TEAL, TEXT_PX, Colour, Pen, length

COLOURS: tuple[Colour, ...] = (TEAL, ORANGE, (98, 104, 190), (200, 62, 120), (128, 140, 28), (150, 110, 84))
_PLOT = (760, 440)  # pixels
_LEFT, _TOP, _BOTTOM, _GAP = 110, 116, 92, 36
_SMALL = 20


def draw_curve(
    series: Mapping[str, Sequence[Point]],
    path: Path,
    x_label: str,
    y_label: str,
    title: str,
    *,
    log_x: bool = False,
) -> Path:
    """Writes the lines through the points (x, y) of each of series, in the order of x, to path, a PNG that is there
    whole or not at all, and returns path. log_x suits costs that double from point to point."""
    return save(curve_sheet(series, x_label, y_label, title, log_x=log_x), Path(path))


def curve_sheet(
    series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, title: str, *, log_x: bool = False
) -> Image.Image:
    """The picture itself, on a transparent ground, the names of the lines on its right."""
    _check(series, log_x)
    widest = max(length(name, _SMALL) for name in series)
    pen = Pen((math.ceil(_LEFT + _PLOT[0] + _GAP + 56 + widest + 16), _TOP + _PLOT[1] + _BOTTOM))
    points = [point for line in series.values() for point in line]
    x = _across([a for a, _ in points], log_x)
    y = Scale(*_range([b for _, b in points]), _TOP + _PLOT[1], _TOP)
    pen.text(24, 18, title, size=28)
    pen.text(24, 68, y_label, size=_SMALL)
    pen.grid(x, y, size=_SMALL)
    for value in _values(x):
        pen.line([(x.at(value), y.start), (x.at(value), y.start + 8)], INK, 2)
        pen.text(x.at(value), y.start + 16, short(value), size=_SMALL, anchor="ma")
    pen.text((x.start + x.end) / 2, y.start + 52, x_label, size=_SMALL, anchor="ma")
    for number, (name, line) in enumerate(series.items()):
        _line(pen, number, [(x.at(a), y.at(b)) for a, b in sorted(line)])
        at = _TOP + 14 + number * (TEXT_PX + 10)
        _line(pen, number, [(x.end + _GAP, at), (x.end + _GAP + 40, at)])
        pen.text(x.end + _GAP + 56, at, name, size=_SMALL, anchor="lm")
    return pen.picture()


def _check(series: Mapping[str, Sequence[Point]], log_x: bool) -> None:
    empty = [name for name, line in series.items() if not line]
    if not series or empty:
        raise ConfigError(f"there are no points of {', '.join(empty) or 'anything'}; leave out what was not measured")
    if len(series) > 2 * len(COLOURS):
        raise ConfigError(f"{len(series)} lines cannot be told apart; draw {2 * len(COLOURS)} or fewer")
    for name, line in series.items():
        if not all(math.isfinite(value) for point in line for value in point):
            raise NumericalError(f"a point of {name} is not finite: {line}")
        if log_x and min(a for a, _ in line) <= 0:
            raise ConfigError(f"a point of {name} lies at x <= 0, which a logarithmic axis has not; use log_x=False")


def _line(pen: Pen, number: int, places: list[tuple[float, float]]) -> None:
    """The second half of the lines has rings where the first has dots."""
    colour = COLOURS[number % len(COLOURS)]
    pen.line(places, colour, 4)
    for place in places:
        if number < len(COLOURS):
            pen.dot(*place, 7, colour)
        else:
            pen.ring(*place, 9, colour, 3)


def _across(values: list[float], log: bool) -> Scale:
    """From the least of values to the greatest, with a little room on either side."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.04, 1.1)
        return Scale(low / room, high * room, _LEFT, _LEFT + _PLOT[0], True)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - room, high + room, _LEFT, _LEFT + _PLOT[0])


def _range(values: list[float]) -> tuple[float, float]:
    """From 0, or from the least of values where they are close to each other and far from it, to the greatest."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return 0.0 if 0 <= low < 0.6 * high else low - room, high + room


def _values(x: Scale) -> list[float]:
    """Round values on the axis: of a logarithmic one the powers of 2, or of 10 where those are too many."""
    if not x.log:
        return ticks(x.low, x.high, 6)
    base = 2 if x.high / x.low < 1500 else 10
    powers = range(math.ceil(math.log(x.low, base)), math.floor(math.log(x.high, base)) + 1)
    return [float(base) ** power for power in powers] or ticks(x.low, x.high, 4)
