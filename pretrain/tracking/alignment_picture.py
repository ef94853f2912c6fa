"""The film of a learned alignment: at some steps of a run, how much each layer of the student gives to each level of
the teacher it is compared with, and below it how much to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pretrain.tracking.charts import short
from pretrain.tracking.lines import Record
from pretrain.tracking.panels import save
from pretrain.tracking.pen import INK, Colour, Pen

_FRAMES = 5
_GIVES = (22, 148, 138)  # a share above 0
_TAKES = (204, 106, 40)  # below
_EMPTY = (126, 126, 126, 30)
_FRAME_PX = 312  # width of a frame
_LEFT, _RIGHT, _TOP, _GAP = 130, 110, 124, 34
_BARS_PX, _BARS_GAP, _BOTTOM = 64, 26, 64
_SMALL = 19


def alignment_picture(records: Sequence[Record], path: Path) -> Path | None:
    """Writes the film of a run's inspections, in the order of their steps, to path, a PNG, and returns path; None, and
    nothing written, where no inspection has an alignment."""
    sheet = alignment_film(records)
    return None if sheet is None else save(sheet, path)


def alignment_film(records: Sequence[Record]) -> Image.Image | None:
    """The first inspection, the last, and up to three between them, side by side; None where none has an alignment."""
    frames = _chosen([record for record in records if record.get("contributions") and record.get("levels")])
    if not frames:
        return None
    levels, num_layers = frames[-1]["levels"], len(frames[-1]["contributions"][0])
    cell = max(6, _FRAME_PX // num_layers)
    wide, high = cell * num_layers, cell * len(levels)
    size = (_LEFT + len(frames) * (wide + _GAP) - _GAP + _RIGHT, _TOP + high + _BARS_GAP + _BARS_PX + _BOTTOM)
    pen = Pen(size)
    pen.text(28, 18, "What the student's layers give to each level of the teacher", size=28)
    pen.text(28, 56, "shares of a row; their sizes sum to 1, weighed by how large each layer is", size=_SMALL)
    largest = max(abs(value) for frame in frames for level in levels for value in frame["contributions"][level])
    for number, frame in enumerate(frames):
        rows = [frame["contributions"][level] for level in levels]
        _frame(pen, _LEFT + number * (wide + _GAP), rows, cell, largest, f"step {short(frame['step'])}")
    _names(pen, levels, cell, size)
    _legend(pen, size[0] - _RIGHT + 30, high, largest)
    return pen.picture()


def _chosen(records: list[Record]) -> list[Record]:
    """At most _FRAMES of records, the first and the last among them, and denser at the start, where most changes."""
    if len(records) <= _FRAMES:
        return records
    last = len(records) - 1
    places = {0, last, *(max(1, round(last * (i / (_FRAMES - 1)) ** 2)) for i in range(1, _FRAMES - 1))}
    spare = (place for place in range(1, last) if place not in places)
    while len(places) < _FRAMES:
        places.add(next(spare))
    return [records[place] for place in sorted(places)]


def _frame(pen: Pen, left: float, rows: list[list[float]], cell: int, largest: float, title: str) -> None:
    """One step: the highest level on top, then the mean size of each layer's shares."""
    num = len(rows[0])
    pen.text(left, _TOP - 30, title, size=22)
    for line, row in enumerate(reversed(rows)):
        top = _TOP + line * cell
        for layer, value in enumerate(row):
            x = left + layer * cell
            pen.box(x + 1, top + 1, x + cell - 1, top + cell - 1, _EMPTY)
            pen.box(x + 1, top + 1, x + cell - 1, top + cell - 1, _colour(value, largest))
    ground = _TOP + len(rows) * cell + _BARS_GAP + _BARS_PX
    for layer in range(num):
        mean = sum(abs(row[layer]) for row in rows) / len(rows)
        x = left + layer * cell
        pen.box(x + 1, ground - max(2, mean / largest * _BARS_PX), x + cell - 1, ground, (*INK[:3], 200))
    every = -(-num // 6)
    for layer in [*range(0, num - every // 2 - 1, every), num - 1]:
        pen.text(left + (layer + 0.5) * cell, ground + 8, str(layer + 1), size=_SMALL, anchor="ma")


def _names(pen: Pen, levels: Sequence[int], cell: int, size: tuple[int, int]) -> None:
    """What rows and columns are."""
    every = max(1, -(-22 // cell))
    for line, level in enumerate(reversed(levels)):
        if line % every == 0:
            pen.text(_LEFT - 12, _TOP + (line + 0.5) * cell, str(level + 1), size=_SMALL, anchor="rm")
    pen.text(_LEFT - 12, _TOP - 30, "teacher", size=_SMALL, anchor="ra")
    pen.text(_LEFT - 12, size[1] - _BOTTOM - _BARS_PX / 2, "all levels", size=_SMALL, anchor="rm")
    pen.text(_LEFT - 12, size[1] - _BOTTOM + 8, "student", size=_SMALL, anchor="ra")


def _legend(pen: Pen, left: float, high: float, largest: float) -> None:
    """The colours of shares, from the largest down to its negative."""
    steps = 24
    for step in range(steps):
        value = largest * (1 - 2 * step / (steps - 1))
        top, bottom = _TOP + high * step / steps, _TOP + high * (step + 1) / steps
        pen.box(left, top, left + 16, bottom, _colour(value, largest))
    for value, y in ((largest, _TOP + 8), (0.0, _TOP + high / 2), (-largest, _TOP + high - 8)):
        pen.text(left + 24, y, f"{value:+.2f}" if value else "0", size=_SMALL, anchor="lm")


def _colour(value: float, largest: float) -> Colour:
    ground = _GIVES if value >= 0 else _TAKES
    return (*ground, round(255 * min(1.0, abs(value) / largest) ** 0.7))
