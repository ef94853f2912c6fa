"""Generated images side by side, as one picture: small ones enlarged so that their pixels can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.generate.feature_space import rounded
from pretrain.tracking.panels import save
from pretrain.tracking.pen import Pen, length

GUTTER = 4  # pixels between tiles
TITLE, CAPTION = 44, 24  # height of what is written above the sheet, and below each tile
_TILE = 96  # the shorter side of a tile has this many pixels or more
_TEXT, _SMALL = 24, 16


def grid_picture(
    images: Tensor,
    path: Path,
    *,
    columns: int | None = None,
    upscale: int | None = None,
    captions: Sequence[str] | None = None,
    title: str = "",
) -> Path:
    """Writes images (B, C, H, W), uint8 or float in 0..1, row by row to path, a PNG that is there whole or not at all,
    and returns path.

    columns: None makes the sheet about square. upscale: every pixel becomes so many by so many; None makes a tile 96
    pixels or more. captions: one an image, cut to its width. One channel is grey; of more than three the first three
    are shown."""
    return save(grid_sheet(images, columns=columns, upscale=upscale, captions=captions, title=title), Path(path))


def grid_sheet(
    images: Tensor,
    *,
    columns: int | None = None,
    upscale: int | None = None,
    captions: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """The picture itself, on a transparent ground."""
    count = len(images)
    columns, upscale = _layout(images, columns, upscale)
    if captions is not None and len(captions) != count:
        raise ConfigError(f"{count} images have {len(captions)} captions; give one an image")
    height, width = (side * upscale for side in images.shape[-2:])
    below, top = CAPTION if captions is not None else 0, TITLE if title else 0
    tall, wide = height + below + GUTTER, width + GUTTER
    room = (columns * wide - GUTTER, top + -(-count // columns) * tall - GUTTER)
    pen = Pen((max(room[0], math.ceil(length(title, _TEXT))), room[1]))
    places = [(i % columns * wide, top + i // columns * tall) for i in range(count)]
    pen.text(0, 4, title, size=_TEXT)
    for (left, up), words in zip(places, captions or ()):
        pen.text(left, up + height + 3, _cut(words, width), size=_SMALL)
    sheet = pen.picture()
    for place, tile in zip(places, _tiles(images, upscale)):
        sheet.paste(tile, place)
    return sheet


def _layout(images: Tensor, columns: int | None, upscale: int | None) -> tuple[int, int]:
    if images.ndim != 4 or not images.numel():
        raise ConfigError(f"images are {tuple(images.shape)}; give (B, C, H, W) with at least one image")
    if columns is not None and columns < 1:
        raise ConfigError(f"columns={columns}; give 1 or more")
    if upscale is not None and upscale < 1:
        raise ConfigError(f"upscale={upscale}; give 1 or more: pixels are repeated and never left out")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else min(columns, len(images))
    return columns, math.ceil(_TILE / min(images.shape[-2:])) if upscale is None else upscale


def _tiles(images: Tensor, upscale: int) -> list[Image.Image]:
    """Each image as RGB."""
    pixels = rounded(images).cpu()
    pixels = pixels[:, :3] if pixels.shape[1] >= 3 else repeat(pixels[:, :1], "b 1 h w -> b c h w", c=3)
    pixels = repeat(pixels, "b c h w -> b c (h p) (w q)", p=upscale, q=upscale)
    return [Image.fromarray(tile.numpy()) for tile in rearrange(pixels, "b c h w -> b h w c").contiguous()]


def _cut(words: str, width: int) -> str:
    """As much of words as fits into width pixels."""
    if length(words, _SMALL) <= width:
        return words
    while words and length(f"{words}..", _SMALL) > width:
        words = words[:-1]
    return f"{words}.."
