"""What hidden tokens are like in every block, at some steps of a run: how unlike the seen ones, who looks at them,
where they look, and what MTO-R keeps from whom (docs/mto-r.md, "What to look at")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pretrain.tracking.charts import Scale, short
from pretrain.tracking.frames import frames
from pretrain.tracking.lines import Record
from pretrain.tracking.panels import save
from pretrain.tracking.pen import INK, ORANGE, TEAL, Colour, Pen, some

_FRAMES = 5
_PLOT = (282, 216)  # pixels of a plot
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 24, 72, 48  # around it
_HEAD = 104
_COLUMNS, _ROWS = 4, 2
_CELL = (_LEFT + _PLOT[0] + _RIGHT, _TOP + _PLOT[1] + _BOTTOM)
_SMALL = 18
_COPIES = 0.2  # a row entropy below it is that of queries that copy from one patch


class _Figure(NamedTuple):
    """One plot over the blocks."""

    title: str
    note: str
    name: str  # in an inspection
    bare: bool = False  # whether the first block is also measured without positions


_FIGURES = (
    _Figure("H = 1 - entropy", "1: a hidden token is like nothing seen", "H", True),
    _Figure("Self mass", "what a hidden token keeps on itself", "self_mass", True),
    _Figure("Distance", "1 - cosine, hidden to seen tokens", "distance", True),
    _Figure("Mass on hidden keys", "of seen queries", "mass"),
    _Figure("Row entropy", "of hidden queries over seen keys", "row"),
)
_NORM, _EXCLUDED, _KEYS = 3, 6, 7  # places of the other plots and of the legend, counted by rows


def heterogeneity_picture(records: Sequence[Record], path: Path) -> Path | None:
    """Writes the plots of a run's inspections, in the order of their steps, to path, a PNG, and returns path; None, and
    nothing written, where no inspection has looked at hidden tokens."""
    sheet = heterogeneity_sheet(records)
    return None if sheet is None else save(sheet, path)


def heterogeneity_sheet(records: Sequence[Record]) -> Image.Image | None:
    """Every figure over the blocks, a line a step, of the first inspection, the last and up to three between them; None
    where none has looked at hidden tokens."""
    records = [record for record in records if record.get("heterogeneity")]
    shown = frames(records, _FRAMES)
    if not shown:
        return None
    pen = Pen((_COLUMNS * _CELL[0], _HEAD + _ROWS * _CELL[1]))
    pen.text(28, 18, "Hidden tokens, block by block", size=28)
    tokens = shown[-1]["heterogeneity"]["tokens"]
    words = f"{tokens['hidden']} hidden and {tokens['seen']} seen tokens an image; means over the pictures' images"
    pen.text(28, 56, words, size=_SMALL)
    colours = _colours(len(shown))
    for figure, place in zip(_FIGURES, (0, 1, 2, 4, 5), strict=True):
        _lines(pen, place, figure, [record["heterogeneity"] for record in shown], colours)
    _norms(pen, records, shown, colours)
    _excluded(pen, shown[-1]["heterogeneity"])
    _legend(pen, shown, colours)
    return pen.picture()


def _lines(pen: Pen, place: int, figure: _Figure, looks: list[Record], colours: list[Colour]) -> None:
    """A figure over the blocks, a line a look."""
    values = [_values(look, figure.name) for look in looks]
    bare = [_values(look["bare"], figure.name)[0] for look in looks] if figure.bare else []
    levels = [level] if (level := _level(figure, looks[-1])) is not None else []
    x = _over(place, len(values[0]))
    y = _up(place, [*(value for row in values for value in row), *bare, *levels])
    _frame(pen, figure.title, figure.note, x, y)
    _blocks(pen, x, y, len(values[0]))
    for level in levels:
        pen.dashes(x.start, x.end, y.at(level))
    for row, colour in zip(values, colours, strict=True):
        _line(pen, [(x.at(block), y.at(value)) for block, value in enumerate(row)], colour)
    for value, colour in zip(bare, colours):
        pen.ring(x.at(0), y.at(value), 10, colour, 3)


def _norms(pen: Pen, records: list[Record], shown: list[Record], colours: list[Colour]) -> None:
    """The norm of the mask token over all steps, those that are shown in their colours."""
    norms = [(record["step"], record["heterogeneity"]["token_norm"]) for record in records]
    x = Scale(0, max(1, norms[-1][0]), *_across(_NORM))
    y = _up(_NORM, [norm for _, norm in norms])
    _frame(pen, "Norm of the mask token", "step by step", x, y)
    pen.line([(x.at(step), y.at(norm)) for step, norm in norms], INK, 3)
    for record, colour in zip(shown, colours, strict=True):
        pen.dot(x.at(record["step"]), y.at(record["heterogeneity"]["token_norm"]), 6, colour)
    for step, anchor in ((0, "ma"), (norms[-1][0], "ra")):
        pen.text(x.at(step), y.start + 10, short(step), size=_SMALL, anchor=anchor)
    pen.text(x.start - 14, y.start + 10, "step", size=_SMALL, anchor="ra")


def _excluded(pen: Pen, look: Record) -> None:
    """How many hidden keys seen queries do not see."""
    counts, hidden = look["excluded"], look["tokens"]["hidden"]
    x, y = Scale(-0.5, len(counts) - 0.5, *_across(_EXCLUDED)), _up(_EXCLUDED, [0, hidden])
    _frame(pen, "Keys excluded", f"from seen queries, of {hidden} hidden", x, y)
    _blocks(pen, x, y, len(counts))
    half = 0.32 * (x.at(1) - x.at(0))
    for block, count in enumerate(counts):
        pen.box(x.at(block) - half, min(y.at(count), y.start - 2), x.at(block) + half, y.start, (*INK[:3], 200))


def _legend(pen: Pen, shown: list[Record], colours: list[Colour]) -> None:
    (left, _), (bottom, top) = _across(_KEYS), _along(_KEYS)
    for number, (record, colour) in enumerate(zip(shown, colours, strict=True)):
        at = top + 16 + number * 30
        _line(pen, [(left, at), (left + 40, at)], colour)
        pen.text(left + 56, at, f"step {short(record['step'])}", size=_SMALL + 2, anchor="lm")
    pen.ring(left + 20, bottom - 48, 10, INK, 3)
    pen.text(left + 56, bottom - 48, "first block, no positions", size=_SMALL, anchor="lm")
    pen.dashes(left, left + 44, bottom - 18)
    pen.text(left + 56, bottom - 18, "mass: uniform attention's", size=_SMALL, anchor="lm")
    pen.text(left + 56, bottom + 6, "row: 0.2, copies a patch", size=_SMALL, anchor="lm")


def _frame(pen: Pen, title: str, note: str, x: Scale, y: Scale) -> None:
    pen.text(x.start - 50, y.end - 60, title, size=22)
    pen.text(x.start - 50, y.end - 33, note, size=_SMALL)
    pen.grid(x, y, number=4, size=_SMALL)


def _blocks(pen: Pen, x: Scale, y: Scale, num_blocks: int) -> None:
    for block in some(num_blocks, 8):
        pen.text(x.at(block), y.start + 10, str(block + 1), size=_SMALL, anchor="ma")
    pen.text(x.start - 14, y.start + 10, "block", size=_SMALL, anchor="ra")


def _line(pen: Pen, places: list[tuple[float, float]], colour: Colour) -> None:
    pen.line(places, colour, 4)
    for place in places:
        pen.dot(*place, 5, colour)


def _values(look: Record, name: str) -> list[float]:
    """A figure block by block, or the one value of the first block."""
    found = look["entropy" if name == "H" else name]
    found = found if isinstance(found, list) else [found]
    return [1 - value for value in found] if name == "H" else found


def _level(figure: _Figure, look: Record) -> float | None:
    """What the dashed line of a figure stands for: the mass of uniform attention, rows that copy."""
    hidden, seen = look["tokens"]["hidden"], look["tokens"]["seen"]
    return {"mass": hidden / (hidden + seen), "row": _COPIES}.get(figure.name)


def _across(place: int) -> tuple[float, float]:
    """Where the plot of a place begins and ends, left to right."""
    start = place % _COLUMNS * _CELL[0] + _LEFT
    return start, start + _PLOT[0]


def _over(place: int, num_blocks: int) -> Scale:
    """From the first block to the last, with room for a ring between the first and the names of values."""
    last = max(1, num_blocks - 1)
    return Scale(-0.06 * last, 1.03 * last, *_across(place))


def _along(place: int) -> tuple[float, float]:
    """The same, from its ground to its top."""
    top = _HEAD + place // _COLUMNS * _CELL[1] + _TOP
    return top + _PLOT[1], top


def _up(place: int, values: list[float]) -> Scale:
    """From 0, or from the lowest of values where they are close to each other and far from it, to the highest."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(0.0 if 0 <= low < 0.6 * high else low - room, high + room, *_along(place))


def _colours(count: int) -> list[Colour]:
    """From the first step's to the last's."""
    shares = [index / max(1, count - 1) for index in range(count)] if count > 1 else [1.0]
    return [(*(round(a + share * (b - a)) for a, b in zip(ORANGE, TEAL, strict=True)), 255) for share in shares]
