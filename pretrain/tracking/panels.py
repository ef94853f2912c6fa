"""Pictures of a run: what was shown to the model, what it made of it, and what masks look like. Pillow only.

A panel has one row an image: original, masked, prediction, paste. The prediction is what the decoder says about hidden
patches (with the patches' own mean and spread put back); the paste is the same with the visible pixels in their places.
Where nothing is hidden a row is original and reconstruction.
The PNG carries its layout in a text chunk, from which `read_cells` cuts it apart again for the report.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin
from torch import Tensor

from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.tracking.progress import Progress

COLUMNS = ("original", "masked", "prediction", "paste")
_GREY = 128  # hidden patches
_INK = (126, 126, 126, 255)  # text that can be read on white and on black, since the ground is transparent
_CELL = 144  # smaller images are enlarged by whole factors to about this many pixels
_CELL_MAX = 288  # larger ones are reduced to this many
_GUTTER = 4
_KEY = "lacuna-panel"


@dataclass(frozen=True)
class Cells:
    """A panel cut apart: the pictures of each image by column, and the step's title."""

    title: str
    rows: list[dict[str, Image.Image]]


def panel(
    originals: Tensor,
    masks: Tensor | None,
    reconstructions: Tensor | None,
    path: Path,
    *,
    grid: Grid,
    predictions: Tensor | None = None,
    title: str = "",
) -> Path:
    """Writes the picture of B images to path, a PNG, and returns path.

    originals (B, C, H, W) uint8; masks (B, N) bool, True where hidden, or None where nothing is; reconstructions
    (B, C, H, W) float in 0..1, visible pixels pasted, or None where nothing is predicted; predictions the same without
    pasting, or None: then only hidden patches are shown.
    """
    columns = {"original": originals.float() / 255}
    if masks is None and reconstructions is not None:
        columns["reconstruction"] = reconstructions.float()
    elif masks is not None:
        hidden = _on_pixels(masks, grid, originals.shape[-2:])
        columns |= _around(columns["original"], hidden, reconstructions, predictions)
    rows = [{name: _picture(images[b]) for name, images in columns.items()} for b in range(len(originals))]
    note = f"channels 1 to 3 of {originals.shape[1]}" if originals.shape[1] > 3 else ""
    sheet, layout = _sheet(rows, "   ".join(filter(None, (title, note))))
    text = PngImagePlugin.PngInfo()
    text.add_text(_KEY, json.dumps({"title": title, "cells": layout}))
    return save(sheet, Path(path), text)


def read_cells(path: str | Path) -> Cells | None:
    """The pictures in a panel at the size they are shown, or None where path is not a panel."""
    try:
        with Image.open(path) as sheet:
            layout = json.loads(sheet.text[_KEY])  # type: ignore[attr-defined]
            rows = [{name: sheet.crop(box).convert("RGB") for name, box in row.items()} for row in layout["cells"]]
            return Cells(layout["title"], rows)
    except (OSError, KeyError, ValueError, AttributeError):
        return None


def masks_picture(
    out: Path,
    grid: tuple[int, int],
    ratio: float,
    on: Sequence[Path] = (),
    seed: int = 0,
    strategies: Sequence[str] = (),
) -> Path:
    """Draws the named mask strategies, all where none is named, with their statistics to out, a PNG; over the
    photographs at `on` where given."""
    from masking.gallery import variants
    from pretrain.tracking.masks_sheet import masks_sheet

    if Path(out).suffix.lower() != ".png":
        raise ConfigError(f"--out={out}; the picture is a PNG, so give it a name that ends in .png")
    cells = Grid(*grid)
    if cells.num_patches < 2:
        raise ConfigError(f"--grid={grid[0]}x{grid[1]} has nothing both to hide and to show; give 2 patches or more")
    if not 0 < ratio < 1 or not 1 <= int(cells.num_patches * (1 - ratio) + 1e-6) < cells.num_patches:
        raise ConfigError(
            f"--ratio={ratio}; give a share above 0 and below 1 that leaves 1 to {cells.num_patches - 1} of "
            f"{cells.num_patches} patches visible"
        )
    photos = [_photo(path) for path in on]
    try:
        number = len(variants(ratio, strategies))
    except ValueError as error:
        raise ConfigError(f"--strategy: {error}") from error
    with Progress(number, "strategies", "masks") as progress:
        sheet = masks_sheet(cells, ratio, photos, seed, strategies, progress.advance)
    return save(sheet, Path(out))


def font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font of captions."""
    return ImageFont.load_default(size_px)


def save(sheet: Image.Image, path: Path, text: PngImagePlugin.PngInfo | None = None) -> Path:
    """Writes sheet to path, a PNG, by one rename, so that nobody finds half a picture; returns path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    sheet.save(temporary, format="PNG", optimize=True, pnginfo=text)
    os.replace(temporary, path)
    return path


def _around(original: Tensor, hidden: Tensor, paste: Tensor | None, predictions: Tensor | None) -> dict[str, Tensor]:
    """The columns beside the original, of images (B, C, H, W) float and hidden (B, 1, H, W) bool."""
    grey = torch.full_like(original, _GREY / 255)
    columns = {"masked": torch.where(hidden, grey, original)}
    if paste is not None:
        paste = paste.float()
        columns["prediction"] = torch.where(hidden, paste, grey) if predictions is None else predictions.float()
        columns["paste"] = paste
    return columns


def _on_pixels(masks: Tensor, grid: Grid, size: torch.Size) -> Tensor:
    """masks (B, N) as (B, 1, H, W) bool."""
    if masks.shape[1] != grid.num_patches or size[0] % grid.height or size[1] % grid.width:
        raise ValueError(
            f"masks of {masks.shape[1]} patches on a grid {grid} do not fit images of {tuple(size)} pixels"
        )
    cells = rearrange(masks.bool(), "b (h w) -> b 1 h w", h=grid.height)
    return repeat(cells, "b 1 h w -> b 1 (h p) (w q)", p=size[0] // grid.height, q=size[1] // grid.width)


def _picture(image: Tensor) -> Image.Image:
    """image (C, H, W) float in 0..1 as RGB of a good size: one channel is grey, of many the first three count."""
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    values = (channels.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(rearrange(values, "c h w -> h w c").contiguous().numpy())
    side = max(picture.size)
    if side > _CELL_MAX:
        size = tuple(max(round(length * _CELL_MAX / side), 1) for length in picture.size)
        return picture.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    factor = max(round(_CELL / side), 1)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _sheet(rows: list[dict[str, Image.Image]], title: str) -> tuple[Image.Image, list[dict[str, list[int]]]]:
    """The rows on one sheet, in blocks side by side when there are many, and the box of every cell."""
    width, height = next(iter(rows[0].values())).size
    num_blocks = 2 if len(rows) > 4 else 1
    num_rows = math.ceil(len(rows) / num_blocks)
    caption, gap = font(13), 4 * _GUTTER
    block_width = len(rows[0]) * (width + _GUTTER) - _GUTTER
    top = (30 if title else 8) + 20
    size = (2 * gap + num_blocks * block_width + (num_blocks - 1) * gap, top + num_rows * (height + _GUTTER) + gap)
    sheet = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 10), title, _INK, font=font(16))
    layout: list[dict[str, list[int]]] = []
    for index, row in enumerate(rows):
        block, line = divmod(index, num_rows)
        layout.append({})
        for column, name in enumerate(row):
            x = gap + block * (block_width + gap) + column * (width + _GUTTER)
            y = top + line * (height + _GUTTER)
            if line == 0:
                draw.text((x, y - 18), name, _INK, font=caption)
            sheet.paste(row[name], (x, y))
            layout[-1][name] = [x, y, x + width, y + height]
    return sheet, layout


def _photo(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ConfigError(f"--on={path}: {error}; give a JPEG, PNG or WEBP photograph") from error
