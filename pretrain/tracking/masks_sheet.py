"""The picture behind `lacuna masks`: a row for every strategy, with a few masks, where they fall, their spectrum and
their numbers. It is about as wide as the text of a printed page at 300 dots per inch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from masking.coverage import Coverage
from masking.gallery import Exhibit, Refusal, exhibit_or_refusal, variants
from masking.importance import gradient_energy
from masking.mask import Grid
from pretrain.tracking.masks_tiles import (
    ACCENT,
    FAINT,
    HIDDEN,
    INK,
    PAPER,
    RULE,
    Rgb,
    Size,
    frequency_scale,
    frequency_tile,
    mask_tile,
    spectrum_tile,
)
from pretrain.tracking.panels import font

NUM_MASKS = 4
_TILE_PX = 154  # the longer side of a mask, where patches fit into that
_EDGE_PX, _GAP_PX, _BETWEEN_PX, _PAD_PX = 48, 40, 10, 16
_WORDS_PX, _PLOT_PX, _NUMBER_PX, _SPACE_PX = 480, (290, 154), 90, 22
_TITLE, _NAME, _TEXT, _SMALL = 54, 32, 27, 23  # letters, pixels
_HEADS = ("visible\nbeside", "alone\n%", "groups", "nearest", "farthest", "uneven\n%")
_LEGEND = (
    "visible beside: of the 4 neighbours of a visible patch, how many are visible too. alone: visible patches without "
    "any. groups: of visible patches that hang together. nearest: distance from a hidden patch to the nearest visible "
    "one, in patches. farthest: the largest such distance in an image. uneven: standard deviation over places of how "
    "often each is hidden.",
    "spectrum: power of a mask against that of white noise, from 0 to 0.71 cycles per patch, on a logarithmic scale; "
    "below it, percent of the power in four bands, which end at 0.12, 0.25, 0.38 and 0.71 cycles per patch.",
)


def masks_sheet(
    grid: Grid,
    ratio: float,
    photos: Sequence[Image.Image],
    seed: int,
    wanted: Sequence[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> Image.Image:
    """The picture of the wanted strategies, of all where none is named, with mask i over photo i modulo their number;
    advance is called after each. ValueError for a strategy that does not exist."""
    num_draws = min(2000, max(2_000_000 // grid.num_patches, 64))
    detail = torch.cat([_detail(photo, grid) for photo in photos]) if photos else None
    shown: list[Exhibit] = []
    refused: list[Refusal] = []
    for name, strategy in variants(ratio, wanted).items():
        item = exhibit_or_refusal(name, strategy, grid, NUM_MASKS, num_draws, seed, detail)
        if isinstance(item, Exhibit):
            shown.append(item)
        else:
            refused.append(item)
        advance()
    shown.sort(key=lambda item: item.coverage.distance)
    blind, guided = ([item for item in shown if item.guided == guided] for guided in (False, True))
    layout = _layout(grid, photos, shown)
    strips = [_head(layout, ratio, num_draws)]
    whose = "the gradients of the photographs" if photos else "an imagined object, a smooth hill or a box"
    for title, items in (("Blind to the image", blind), (f"Guided by {whose}", guided)):
        strips += [_section(layout, title), *(_row(layout, item) for item in items)] if items else []
    if refused:
        strips += [_section(layout, "Not possible here"), *(_refusal(layout, item) for item in refused)]
    return _stack([*strips, _legend(layout)])


@dataclass(frozen=True)
class _Layout:
    """Where things are, in pixels from the left."""

    grid: Grid
    tile: Size  # of a mask
    grounds: list[Image.Image]  # photographs of that size
    masks: int
    frequency: int
    plot: int
    number_ends: list[int]
    width: int
    longest: tuple[float, float]  # of the distances, which have no bound of their own


def _layout(grid: Grid, photos: Sequence[Image.Image], shown: Sequence[Exhibit]) -> _Layout:
    patch = max(_TILE_PX // max(grid.height, grid.width), 1)
    tile = (grid.width * patch, grid.height * patch)
    masks = _EDGE_PX + _WORDS_PX + _GAP_PX
    frequency = masks + NUM_MASKS * (tile[0] + _BETWEEN_PX) + _GAP_PX - _BETWEEN_PX
    plot = frequency + max(tile[0], _TILE_PX) + _GAP_PX
    numbers = plot + _PLOT_PX[0] + _GAP_PX
    ends = [numbers + _NUMBER_PX + index * (_NUMBER_PX + _SPACE_PX) for index in range(len(_HEADS))]
    grounds = [ImageOps.fit(photo, tile, Image.Resampling.LANCZOS) for photo in photos]
    nearest = max((item.coverage.distance for item in shown), default=1.0)
    farthest = max((item.coverage.farthest for item in shown), default=1.0)
    return _Layout(grid, tile, grounds, masks, frequency, plot, ends, ends[-1] + _EDGE_PX, (nearest, farthest))


def _head(layout: _Layout, ratio: float, num_draws: int) -> Image.Image:
    strip, draw = _strip(layout, 296)
    grid = layout.grid
    visible = int(grid.num_patches * (1 - ratio) + 1e-6)
    words = (
        f"{grid.height} x {grid.width} patches, {visible} of {grid.num_patches} visible; numbers over {num_draws:,} "
        "masks; each part ordered by nearest"
    )
    draw.text((_EDGE_PX, 36), "Mask strategies", INK, font=font(_TITLE))
    draw.text((_EDGE_PX, 108), words, FAINT, font=font(_TEXT))
    bottom = 250
    for x, title in ((layout.masks, "masks"), (layout.frequency, "how often\nhidden"), (layout.plot, "spectrum")):
        draw.text((x, bottom), title, INK, font=font(_TEXT), anchor="ld")
    for x, title in zip(layout.number_ends, _HEADS, strict=True):
        draw.text((x, bottom), title, INK, font=font(_TEXT), anchor="rd", align="right")
    scale = (max(layout.tile[0], _TILE_PX), 8)
    strip.paste(frequency_scale(1 - visible / grid.num_patches, scale), (layout.frequency, bottom + 8))
    for x, words, anchor in ((0, "never", "la"), (scale[0], "always", "ra")):
        draw.text((layout.frequency + x, bottom + 18), words, FAINT, font=font(_SMALL - 3), anchor=anchor)
    return strip


def _section(layout: _Layout, title: str) -> Image.Image:
    strip, draw = _strip(layout, 54)
    draw.line([(_EDGE_PX, 1), (layout.width - _EDGE_PX, 1)], INK, 2)
    draw.text((_EDGE_PX, 17), title, FAINT, font=font(_TEXT))
    return strip


def _row(layout: _Layout, item: Exhibit) -> Image.Image:
    words = _words(item.name, item.summary, item.settings, _WORDS_PX)
    strip, draw = _strip(layout, max(_height(words), layout.tile[1], _PLOT_PX[1]) + 2 * _PAD_PX)
    draw.line([(_EDGE_PX, 0), (layout.width - _EDGE_PX, 0)], RULE)
    _write(draw, words)
    for index, hidden in enumerate(item.hidden):
        ground = layout.grounds[index % len(layout.grounds)] if layout.grounds else None
        strip.paste(
            mask_tile(hidden, ground, layout.tile), (layout.masks + index * (layout.tile[0] + _BETWEEN_PX), _PAD_PX)
        )
    strip.paste(frequency_tile(item.frequency, layout.tile), (layout.frequency, _PAD_PX))
    strip.paste(spectrum_tile(item.coverage, _PLOT_PX), (layout.plot, _PAD_PX))
    for x, (number, share) in zip(layout.number_ends, _numbers(item.coverage, layout), strict=True):
        draw.text((x, _PAD_PX - 3), number, INK, font=font(_NAME - 2), anchor="ra")
        _bar(draw, x, share)
    return strip


def _numbers(coverage: Coverage, layout: _Layout) -> tuple[tuple[str, float], ...]:
    """In the order of _HEADS, each with how full its bar is."""
    num_visible = coverage.share_visible * layout.grid.num_patches
    return (
        (f"{coverage.visible_neighbours:.2f}", coverage.visible_neighbours / 4),
        (f"{100 * coverage.share_isolated:.0f}", coverage.share_isolated),
        (f"{coverage.components:.1f}", coverage.components / num_visible),
        (f"{coverage.distance:.2f}", coverage.distance / layout.longest[0]),
        (f"{coverage.farthest:.1f}", coverage.farthest / layout.longest[1]),
        (f"{100 * coverage.unevenness:.0f}", coverage.unevenness / 0.5),
    )


def _bar(draw: ImageDraw.ImageDraw, right: int, share: float) -> None:
    left, top = right - _NUMBER_PX, _PAD_PX + 38
    draw.rectangle((left, top, right - 1, top + 5), HIDDEN)
    draw.rectangle((left, top, left + round(min(share, 1) * (_NUMBER_PX - 1)), top + 5), ACCENT)


def _refusal(layout: _Layout, item: Refusal) -> Image.Image:
    words = _words(item.name, item.summary, item.settings, _WORDS_PX)
    why = _wrapped(item.why, _TEXT, INK, layout.width - layout.masks - _EDGE_PX)
    strip, draw = _strip(layout, max(_height(words), _height(why)) + 2 * _PAD_PX)
    draw.line([(_EDGE_PX, 0), (layout.width - _EDGE_PX, 0)], RULE)
    _write(draw, words)
    _write(draw, why, layout.masks)
    return strip


def _legend(layout: _Layout) -> Image.Image:
    words = [line for text in _LEGEND for line in _wrapped(text, _SMALL, FAINT, layout.width - 2 * _EDGE_PX)]
    strip, draw = _strip(layout, _height(words) + 60)
    draw.line([(_EDGE_PX, 1), (layout.width - _EDGE_PX, 1)], INK, 2)
    _write(draw, words, top=20)
    return strip


_Lines = list[tuple[str, int, Rgb]]  # words, size in pixels, colour


def _words(name: str, summary: str, settings: str, width: int) -> _Lines:
    lines = _wrapped(name, _NAME, INK, width) + _wrapped(summary, _TEXT, FAINT, width)
    return lines + _wrapped(settings, _SMALL, ACCENT, width)


def _wrapped(text: str, size: int, colour: Rgb, width: int) -> _Lines:
    """Lines no wider than so many pixels, but for words that are."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [(line, size, colour) for line in lines]


def _write(draw: ImageDraw.ImageDraw, lines: _Lines, left: int = _EDGE_PX, top: int = _PAD_PX - 5) -> None:
    for text, size, colour in lines:
        draw.text((left, top), text, colour, font=font(size))
        top += _line_height(size)


def _height(lines: _Lines) -> int:
    return sum(_line_height(size) for _, size, _ in lines)


def _line_height(size: int) -> int:
    return round(1.3 * size)


def _strip(layout: _Layout, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    strip = Image.new("RGB", (layout.width, height), PAPER)
    return strip, ImageDraw.Draw(strip)


def _stack(strips: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), PAPER)
    y = 0
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    return sheet


def _detail(photo: Image.Image, grid: Grid) -> Tensor:
    """How much happens in each patch of photo, (1, N) float."""
    size = (grid.width * 16, grid.height * 16)
    small = ImageOps.fit(photo.convert("RGB"), size, Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return gradient_energy(rearrange(pixels, "(h w c) -> 1 c h w", w=size[0], c=3), grid)
