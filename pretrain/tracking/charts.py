"""Line charts as inline SVG: thin, labelled, coloured by the page's style sheet, with their points for hovering."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

Point = tuple[float, float]

_WIDTH, _HEIGHT = 520, 256
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 22, 28  # hovering writes above the top
_MAX_POINTS = 400
_NAME_PX = 160  # room for an event's name


@dataclass(frozen=True)
class Series:
    """Points of one quantity over steps."""

    name: str
    points: Sequence[Point]  # x ascending
    style: str = "first"  # class in the style sheet: first, second, third, or faint for what is behind a smoothed line
    dots: bool = False  # marks every point; for few of them


@dataclass(frozen=True)
class Scale:
    """From a value to its place on the page."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixels of value; what lies outside is placed outside."""
        low, high, value = (math.log10(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def chart(
    title: str,
    series: Sequence[Series],
    *,
    percent: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
    marks: Sequence[float] = (),
    events: Sequence[tuple[str, float]] = (),
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """An SVG of the series over steps. marks: steps with a vertical line (resumes); events: named ones; levels: named
    horizontal lines."""
    series = [Series(s.name, thin(s.points), s.style, s.dots) for s in series if s.points]
    if not series:
        return ""
    x_values = [x for s in series for x, _ in s.points]
    low, high = _y_range(series, [level for _, level in levels], from_zero, log_y)
    x_low = max(min(x_values), 1) if log_x else min(x_values)
    x_low = 0 if not log_x and x_low < 0.02 * max(x_values) else x_low
    x = Scale(x_low, max(max(x_values), x_low + 1), _LEFT, _WIDTH - _RIGHT, log_x)
    y = Scale(low, high, _HEIGHT - _BOTTOM, _TOP, log_y)
    name = "clip-" + "".join(c if c.isalnum() else "-" for c in f"{title}{'-log' if log_x else ''}")
    body = [_grid(x, y, percent), *_verticals(x, marks), *_events(x, events), *_levels(y, levels, percent)]
    body += [f'<g clip-path="url(#{name})">', *(_line(s, x, y) for s in series), "</g>"]
    clip = (
        f'<clipPath id="{name}"><rect x="{_LEFT - 5}" y="{_TOP - 4}" width="{_WIDTH - _LEFT - _RIGHT + 10}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM + 4}"/></clipPath>'
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" '
        f"data-hover='{_hover(series, x, y, percent)}'>{clip}{''.join(body)}</svg>"
    )


def _hover(series: Sequence[Series], x: Scale, y: Scale, percent: bool) -> str:
    """Places and values of the points, for the page's script."""
    shown = [
        {
            "name": s.name,
            "points": [[round(x.at(a), 1), round(y.at(b), 1), int(a), _value(b, percent)] for a, b in s.points],
        }
        for s in series
        if s.style != "faint"
    ]
    return escape(json.dumps(shown, separators=(",", ":")), quote=True)


def smooth(points: Sequence[Point], *, sharp_start: bool = False, share: float = 0.02) -> list[Point]:
    """points, each the mean of its surroundings, up to that share of all to both sides, so that nothing lags.

    sharp_start: fewer near the start, where a loss falls fastest."""
    sums = list(accumulate((y for _, y in points), initial=0.0))
    widest = int(share * len(points))
    result = []
    for i, (x, _) in enumerate(points):
        half = min(widest, i // 6) if sharp_start else widest
        first, last = max(i - half, 0), min(i + half + 1, len(points))
        result.append((x, (sums[last] - sums[first]) / (last - first)))
    return result


def thin(points: Sequence[Point], limit: int = _MAX_POINTS) -> list[Point]:
    """At most about limit of the points: of each bin the lowest and the highest stay, and the first and last of all."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(range(len(part)), key=lambda i: part[i][1]), max(range(len(part)), key=lambda i: part[i][1])}
        kept += [part[i] for i in sorted(ends)]
    return [points[0], *(p for p in kept if points[0][0] < p[0] < points[-1][0]), points[-1]]


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round values from low to high, about so many."""
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as a tick label: 0.25, 40, 1.5k, 20k, 3M, 1e-4."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4 or (size >= 1e3 and value % 500 == 0):
        return f"{value / 1e3:.4g}k"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def _y_range(series: Sequence[Series], levels: Sequence[float], from_zero: bool, log: bool) -> tuple[float, float]:
    values = [y for s in series if s.style != "faint" for _, y in s.points] + list(levels)
    for s in series:
        if s.style == "faint":  # its extremes may leave the picture
            ordered = sorted(y for _, y in s.points)
            values += [ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]]
    if log:
        values = [v for v in values if v > 0] or [1.0]
        return min(values) / 1.2, max(values) * 1.2
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if from_zero else low - room), high + room


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low) > 2.2
    found = [f * 10.0**d for d in decades for f in ((1,) if wide else (1, 2, 5)) if low <= f * 10.0**d <= high]
    return found or [low, high]


def _grid(x: Scale, y: Scale, percent: bool) -> str:
    parts = []
    for value in _log_ticks(y.low, y.high) if y.log else ticks(y.low, y.high):
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_tick(value, percent)}</text>'
        )
    for value in _log_ticks(x.low, x.high) if x.log else ticks(x.low, x.high):
        at = x.at(value)
        anchor = "end" if at > _WIDTH - _RIGHT - 14 else "middle"
        parts.append(f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{short(value)}</text>')
    return "".join(parts)


def _verticals(x: Scale, marks: Sequence[float]) -> list[str]:
    return [
        f'<line class="mark" x1="{x.at(m):.1f}" x2="{x.at(m):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}">'
        f"<title>resumed at step {m:g}</title></line>"
        for m in marks
        if x.low < m < x.high
    ]


def _events(x: Scale, events: Sequence[tuple[str, float]]) -> list[str]:
    """A line each, and its name on its right where there is room."""
    parts = []
    for name, step in events:
        at = x.at(step)
        left = at > x.end - _NAME_PX
        parts.append(f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(
            f'<text class="level" x="{at - 6 if left else at + 6:.1f}" y="{_TOP + 12}" '
            f'text-anchor="{"end" if left else "start"}">{escape(name)}</text>'
        )
    return parts


def _levels(y: Scale, levels: Sequence[tuple[str, float]], percent: bool) -> list[str]:
    parts = []
    for name, value in levels:
        at = y.at(value)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="level" x="{_WIDTH - _RIGHT}" y="{at - 5:.1f}" text-anchor="end">'
            f"{escape(name)} {_value(value, percent)}</text>"
        )
    return parts


def _line(series: Series, x: Scale, y: Scale) -> str:
    places = [(x.at(a), y.at(b)) for a, b in series.points if not x.log or a >= x.low]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [f'<polyline class="{series.style}" points="{path}"/>']
    if series.dots or len(places) == 1:
        parts += [f'<circle class="{series.style}" cx="{a:.1f}" cy="{b:.1f}" r="3.2"/>' for a, b in places]
    return "".join(parts)


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.4g} %" if percent else short(value)


def _value(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"
