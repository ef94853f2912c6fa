"""The picture of a segmentation: a row an image, as it is, with its true classes over it, and with those predicted; and
which colour is which class. Pixels of no class stay as they are."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pretrain.tracking.panels import font, save
from pretrain.types import VOID

GROUP = "segments"  # of the files in a run's panels
_INK = (126, 126, 126, 255)  # can be read on white and on black, since the ground is transparent
_OPACITY = 0.6
_CELL_PX = 320  # longer side of an image
_GUTTER, _MARGIN, _HEAD, _LINE = 6, 14, 62, 26
_COLUMNS = ("image", "truth", "prediction")
Example = tuple[Tensor, NDArray[np.uint8], NDArray[np.uint8]]  # (C, S_h, S_w), and (H, W) each


def segments_picture(examples: Sequence[Example], names: Sequence[str], path: Path, title: str = "") -> Path:
    """Writes the picture of examples to path, a PNG, and returns path; names are those of the classes, in order. Each
    image is shown in the shape of its map."""
    rows = [_row(*example) for example in examples]
    width = max(sum(cell.width for cell in row) + 2 * _GUTTER for row in rows) + 2 * _MARGIN
    used = np.unique(np.concatenate([part.ravel() for _, *maps in examples for part in maps]))
    legend, legend_px = _legend([int(number) for number in used if number != VOID], names, width)
    height = _HEAD + sum(row[0].height + _GUTTER for row in rows) + legend_px + _MARGIN
    sheet = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 10), title, _INK, font=font(17))
    top = _HEAD
    for row in rows:
        left = _MARGIN
        for cell, name in zip(row, _COLUMNS, strict=True):
            if top == _HEAD:
                draw.text((left, top - 20), name, _INK, font=font(14))
            sheet.paste(cell, (left, top))
            left += cell.width + _GUTTER
        top += row[0].height + _GUTTER
    for number, name, x, y in legend:
        draw.rectangle((x, top + y + 5, x + 15, top + y + 20), colour(number))
        draw.text((x + 22, top + y + 4), name, _INK, font=font(14))
    return save(sheet, path)


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class: neighbours in number are far apart in hue."""
    tone = (0.85, 0.95), (0.55, 0.9), (0.9, 0.6)
    saturation, value = tone[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(number * 0.61803399 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _row(image: Tensor, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> list[Image.Image]:
    scale = _CELL_PX / max(truth.shape)
    size = max(round(truth.shape[1] * scale), 1), max(round(truth.shape[0] * scale), 1)
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    pixels = Image.fromarray(rearrange(channels, "c h w -> h w c").contiguous().numpy())
    shown = pixels.resize(size, Image.Resampling.BICUBIC)
    return [shown, *(_over(shown, classes) for classes in (truth, predicted))]


def _over(shown: Image.Image, classes: NDArray[np.uint8]) -> Image.Image:
    small = np.asarray(Image.fromarray(classes).resize(shown.size, Image.Resampling.NEAREST))
    colours = np.array([colour(number) for number in range(VOID)] + [(0, 0, 0)], np.float32)[small]
    opacity = np.where(small == VOID, 0, _OPACITY)[..., None]
    blended = np.asarray(shown, np.float32) * (1 - opacity) + colours * opacity
    return Image.fromarray(blended.round().astype(np.uint8))


def _legend(numbers: list[int], names: Sequence[str], width: int) -> tuple[list[tuple[int, str, int, int]], int]:
    """(class, name, x, y) of each entry, in lines that fit into width, and the height of all lines, pixels."""
    entries, x, y = [], _MARGIN, 0
    for number in numbers:
        length = round(font(14).getlength(names[number])) + 42
        if x > _MARGIN and x + length > width:
            x, y = _MARGIN, y + _LINE
        entries.append((number, names[number], x, y))
        x += length
    return entries, y + _LINE
