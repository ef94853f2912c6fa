"""Lines, dots, boxes, words and axes on a transparent sheet, in places of the finished picture. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from pretrain.tracking.charts import Scale, short, ticks
from pretrain.tracking.panels import font

Colour = tuple[int, ...]

INK = (126, 126, 126, 255)  # can be read on white and on black, since the ground is transparent
TEAL, ORANGE = (22, 148, 138), (204, 106, 40)  # two that can be told apart on either, by everybody
TEXT_PX = 24
_GRID = (*INK[:3], 60)
_OVER = 2  # drawn so many times larger, then reduced: Pillow draws without anti-aliasing


class Pen:
    """Draws on a sheet of size (width, height), pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._sheet = Image.new("RGBA", (size[0] * _OVER, size[1] * _OVER), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._sheet)

    def line(self, places: Sequence[tuple[float, float]], colour: Colour, width: int) -> None:
        """A line through places."""
        self._draw.line([(a * _OVER, b * _OVER) for a, b in places], colour, width * _OVER, joint="curve")

    def dashes(self, left: float, right: float, y: float) -> None:
        """A level: a dashed horizontal line."""
        start = left
        while start < right:
            self.line([(start, y), (min(start + 16, right), y)], INK, 3)
            start += 28

    def grid(self, x: Scale, y: Scale, number: int = 5, size: int = TEXT_PX) -> None:
        """Horizontal lines at about number round values of y, the values written to their left."""
        for value in ticks(y.low, y.high, number):
            self.line([(x.start, y.at(value)), (x.end, y.at(value))], _GRID, 2)
            self.text(x.start - 14, y.at(value), short(value), size=size, anchor="rm")

    def ring(self, x: float, y: float, radius: float, colour: Colour, width: int) -> None:
        """A circle."""
        self._draw.ellipse([(v + d) * _OVER for d in (-radius, radius) for v in (x, y)], None, colour, width * _OVER)

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle."""
        self._draw.ellipse([(v + d) * _OVER for d in (-radius, radius) for v in (x, y)], colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle; right and bottom are the first pixels outside."""
        corners = [left * _OVER, top * _OVER, right * _OVER - 1, bottom * _OVER - 1]
        self._draw.rectangle(corners, colour)

    def text(self, x: float, y: float, words: str, size: int = TEXT_PX, anchor: str = "la") -> float:
        """Writes words; returns their width."""
        self._draw.text((x * _OVER, y * _OVER), words, INK, font=font(size * _OVER), anchor=anchor)
        return length(words, size)

    def picture(self) -> Image.Image:
        """What was drawn."""
        return self._sheet.resize(self._size, Image.Resampling.LANCZOS)


def length(words: str, size: int = TEXT_PX) -> float:
    """The width of words, pixels."""
    return font(size * _OVER).getlength(words) / _OVER


def some(count: int, number: int) -> list[int]:
    """About number of the places 0 to count - 1, at equal distances, the first and the last among them."""
    every = -(-count // number)
    return [*range(0, count - every // 2 - 1, every), count - 1]
