"""Lines, dots, boxes and words on a transparent sheet, in places of the finished picture. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from pretrain.tracking.panels import font

Colour = tuple[int, ...]

INK = (126, 126, 126, 255)  # can be read on white and on black, since the ground is transparent
TEXT_PX = 24
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

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle."""
        self._draw.ellipse([(v + d) * _OVER for d in (-radius, radius) for v in (x, y)], colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle; right and bottom are the first pixels outside."""
        corners = [left * _OVER, top * _OVER, right * _OVER - 1, bottom * _OVER - 1]
        self._draw.rectangle(corners, colour)

    def text(self, x: float, y: float, words: str, size: int = TEXT_PX, anchor: str = "la") -> float:
        """Writes words; returns their width."""
        face = font(size * _OVER)
        self._draw.text((x * _OVER, y * _OVER), words, INK, font=face, anchor=anchor)
        return self._draw.textlength(words, font=face) / _OVER

    def picture(self) -> Image.Image:
        """What was drawn."""
        return self._sheet.resize(self._size, Image.Resampling.LANCZOS)
