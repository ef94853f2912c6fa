"""The film of a learned alignment: at some steps of a run, how much each layer of the student gives to each level of
the teacher it is compared with, and below it how much to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pretrain.tracking.charts import short
from pretrain.tracking.frames import frames
from pretrain.tracking.lines import Record
from pretrain.tracking.panels import save
from pretrain.tracking.pen import INK, ORANGE, TEAL, Colour, Pen, length, some

_FRAMES = 5
_EMPTY = (126, 126, 126, 30)
_FRAME_PX = 312  # width of a frame
_LEFT, _RIGHT, _TOP, _GAP = 152, 128, 148, 34
_BARS_PX, _BARS_GAP, _BOTTOM = 64, 26, 56
_MARGIN = 28
_LARGE, _MIDDLE, _SMALL = 34, 28, 24  # the report shows five frames at half their size
_TITLE = "What the student's layers give to each level of the teacher"
_NOTE = "shares of a row; their sizes sum to 1, weighed by how large each layer is"


def alignment_picture(records: Sequence[Record], path: Path) -> Path | None:
    """Writes the film of a run's inspections, in the order of their steps, to path, a PNG, and returns path; None, and
    nothing written, where no inspection has an alignment."""
    sheet = alignment_film(records)
    return None if sheet is None else save(sheet, path)


def alignment_film(records: Sequence[Record]) -> Image.Image | None:
    """The first inspection, the last, and up to three between them, side by side; None where none has an alignment."""
    shown = frames([record for record in records if record.get("contributions") and record.get("levels")], _FRAMES)
    if not shown:
        return None
    levels, num_layers = shown[-1]["levels"], len(shown[-1]["contributions"][0])
    cell = max(6, _FRAME_PX // num_layers)
    wide, high = cell * num_layers, cell * len(levels)
    right, ground = _LEFT + len(shown) * (wide + _GAP) - _GAP, _TOP + high + _BARS_GAP + _BARS_PX
    pen = Pen((max(right + _RIGHT, _heads_width()), ground + _BOTTOM))
    pen.text(_MARGIN, 14, _TITLE, size=_LARGE)
    pen.text(_MARGIN, 60, _NOTE, size=_SMALL)
    rows = [[frame["contributions"][level] for level in levels] for frame in shown]
    largest = max(abs(value) for frame in rows for row in frame for value in row)
    tallest = max(size for frame in rows for size in _sizes(frame))
    for number, (frame, record) in enumerate(zip(rows, shown, strict=True)):
        left = _LEFT + number * (wide + _GAP)
        pen.text(left, _TOP - 12, f"step {short(record['step'])}", size=_MIDDLE, anchor="ls")
        _matrix(pen, left, frame, cell, largest)
        _bars(pen, left, ground, [size / tallest for size in _sizes(frame)], cell)
    _names(pen, levels, cell, ground)
    _legend(pen, right + 30, high, largest)
    return pen.picture()


def _heads_width() -> int:
    """Pixels that the words above the frames need, which are wider than one frame."""
    return round(_MARGIN + max(length(_TITLE, _LARGE), length(_NOTE, _SMALL)) + _MARGIN)


def _matrix(pen: Pen, left: float, rows: list[list[float]], cell: int, largest: float) -> None:
    """The shares of one step, the highest level on top."""
    for line, row in enumerate(reversed(rows)):
        top = _TOP + line * cell
        for layer, value in enumerate(row):
            x = left + layer * cell
            pen.box(x + 1, top + 1, x + cell - 1, top + cell - 1, _EMPTY)
            pen.box(x + 1, top + 1, x + cell - 1, top + cell - 1, _colour(value, largest))


def _bars(pen: Pen, left: float, ground: float, heights: list[float], cell: int) -> None:
    """What each layer gives to all levels, of the most that any gives in any step; and the layers' numbers."""
    for layer, height in enumerate(heights):
        x = left + layer * cell
        pen.box(x + 1, ground - max(2, height * _BARS_PX), x + cell - 1, ground, (*INK[:3], 200))
    for layer in some(len(heights), 6):
        pen.text(left + (layer + 0.5) * cell, ground + 8, str(layer + 1), size=_SMALL, anchor="ma")


def _sizes(rows: list[list[float]]) -> list[float]:
    """How much each layer gives to all levels together, whatever its sign."""
    return [sum(map(abs, column)) for column in zip(*rows, strict=True)]


def _names(pen: Pen, levels: Sequence[int], cell: int, ground: float) -> None:
    """What rows and columns are."""
    every = max(1, -(-_SMALL // cell))
    for line, level in enumerate(reversed(levels)):
        if line % every == 0:
            pen.text(_LEFT - 12, _TOP + (line + 0.5) * cell, str(level + 1), size=_SMALL, anchor="rm")
    pen.text(_LEFT - 12, _TOP - 12, "teacher", size=_SMALL, anchor="rs")
    pen.text(_LEFT - 12, ground - _BARS_PX / 2, "all levels", size=_SMALL, anchor="rm")
    pen.text(_LEFT - 12, ground + 8, "student", size=_SMALL, anchor="ra")


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
    """A root, so that small shares, which are what is learned, can be seen beside the diagonal that it starts from."""
    ground = TEAL if value >= 0 else ORANGE
    return (*ground, round(255 * min(1.0, abs(value) / largest) ** 0.5))
