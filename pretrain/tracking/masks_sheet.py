"""The picture behind `lacuna masks`: a row for every strategy, with a few masks, where they fall, and their numbers."""

from __future__ import annotations

import textwrap

import torch
from einops import rearrange, reduce
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from masking.gallery import Coverage, Exhibit, gallery
from masking.mask import Grid
from pretrain.tracking.panels import font

_PAPER, _INK, _FAINT = (252, 252, 250), (32, 33, 36), (118, 120, 124)
_VISIBLE, _HIDDEN = (226, 177, 94), (52, 60, 74)  # patches without a photograph: shown ones light, hidden ones dark
_LOW, _HIGH = (252, 244, 224), (52, 60, 74)  # never hidden, always hidden
_TILE_PX, _GUTTER_PX, _EDGE_PX, _TEXT_PX = 176, 10, 28, 350
_NUM_MASKS = 4


def masks_sheet(grid: Grid, ratio: float, photo: Image.Image | None, seed: int) -> Image.Image:
    """The picture of all strategies, over photo where given."""
    patch = max(_TILE_PX // max(grid.height, grid.width), 1)
    size = (grid.width * patch, grid.height * patch)
    ground = None if photo is None else ImageOps.fit(photo, size, Image.Resampling.LANCZOS)
    detail = None if photo is None else _detail(ImageOps.fit(photo, (grid.width * 8, grid.height * 8)), grid)
    exhibits = gallery(grid, ratio, _NUM_MASKS, seed=seed, detail=detail)
    row_height = max(size[1], 150) + 3 * _GUTTER_PX
    width = 2 * _EDGE_PX + (_NUM_MASKS + 1) * (size[0] + _GUTTER_PX) + _GUTTER_PX + _TEXT_PX
    sheet = Image.new("RGB", (width, 96 + row_height * len(exhibits)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    visible = round(exhibits[0].coverage.share_visible * grid.num_patches) if exhibits else 0
    draw.text((_EDGE_PX, 22), "Mask strategies", _INK, font=font(24))
    draw.text(
        (_EDGE_PX, 54),
        f"{grid.height} x {grid.width} patches, {visible} of {grid.num_patches} visible; the last column shows how "
        "often each patch is hidden",
        _FAINT,
        font=font(14),
    )
    for index, item in enumerate(exhibits):
        _row(sheet, 90 + index * row_height, item, ground, size)
    return sheet


def _row(sheet: Image.Image, top: int, item: Exhibit, ground: Image.Image | None, size: tuple[int, int]) -> None:
    tiles = [_tile(hidden, ground, size) for hidden in item.hidden]
    tiles.append(_colours(item.frequency, _LOW, _HIGH, size))
    x = _EDGE_PX
    for index, tile in enumerate(tiles):
        x += _GUTTER_PX if index == len(tiles) - 1 else 0
        sheet.paste(tile, (x, top))
        x += size[0] + _GUTTER_PX
    _words(ImageDraw.Draw(sheet), x + _GUTTER_PX, top, item)


def _words(draw: ImageDraw.ImageDraw, x: int, top: int, item: Exhibit) -> None:
    draw.text((x, top - 3), item.name, _INK, font=font(19))
    y = top + 24
    for line in textwrap.wrap(item.summary, 48)[:2]:
        draw.text((x, y), line, _FAINT, font=font(13))
        y += 17
    y += 8
    for label, value in _lines(item.coverage):
        draw.text((x, y), label, _FAINT, font=font(13))
        draw.text((x + _TEXT_PX - 30, y), value, _INK, font=font(13), anchor="ra")
        y += 18


def _lines(coverage: Coverage) -> list[tuple[str, str]]:
    return [
        ("visible", f"{100 * coverage.share_visible:.1f} %"),
        ("visible of a hidden patch's 4 neighbours", f"{coverage.visible_neighbours:.2f}"),
        ("hidden with nothing visible around", f"{100 * coverage.share_isolated:.1f} %"),
        ("patches to the nearest visible one", f"{coverage.distance:.2f}"),
        ("unevenness over the picture", f"{100 * coverage.unevenness:.1f} %"),
    ]


def _tile(hidden: Tensor, ground: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    if ground is None:
        return _colours(hidden.float(), _VISIBLE, _HIDDEN, size)
    cover = Image.fromarray((hidden.to(torch.uint8) * 255).numpy()).resize(size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", size, (128, 128, 128)), ground, cover)


def _colours(
    values: Tensor, low: tuple[int, int, int], high: tuple[int, int, int], size: tuple[int, int]
) -> Image.Image:
    """values (h, w) in 0..1 between two colours, each patch set apart by a thin line where there is room."""
    share = rearrange(values, "h w -> h w 1")
    mixed = (torch.tensor(low) * (1 - share) + torch.tensor(high) * share).round().to(torch.uint8)
    tile = Image.fromarray(mixed.numpy()).resize(size, Image.Resampling.NEAREST)
    patch = size[0] // values.shape[1]
    if patch >= 8:
        draw = ImageDraw.Draw(tile)
        for x in range(patch, size[0], patch):
            draw.line([(x, 0), (x, size[1])], _PAPER)
        for y in range(patch, size[1], patch):
            draw.line([(0, y), (size[0], y)], _PAPER)
    return tile


def _detail(photo: Image.Image, grid: Grid) -> Tensor:
    """How much happens in each patch of photo, (N,) float: the spread of its grey values."""
    grey = torch.frombuffer(bytearray(photo.convert("L").tobytes()), dtype=torch.uint8).float()
    pixels = rearrange(grey, "(h p w q) -> (h w) (p q)", h=grid.height, p=8, w=grid.width, q=8)
    return reduce((pixels - pixels.mean(1, keepdim=True)) ** 2, "n p -> n", "mean").sqrt()
