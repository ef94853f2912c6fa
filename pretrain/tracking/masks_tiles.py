"""The small pictures of `lacuna masks`: one mask, how often each patch is hidden, and the spectrum."""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from masking.coverage import BANDS, Coverage
from pretrain.tracking.panels import font

Rgb = tuple[int, int, int]
Size = tuple[int, int]  # width, height

PAPER, INK, FAINT, RULE = (255, 255, 255), (29, 31, 35), (104, 108, 116), (222, 220, 213)
ACCENT = (12, 107, 102)  # visible patches, and what is often visible
OTHER = (179, 84, 30)  # what is often hidden
HIDDEN = (233, 231, 225)  # hidden patches, where there is no photograph
_SHADOW = (196, 195, 191)  # hidden patches of a photograph fade into this
_EVEN = (242, 240, 235)  # as often hidden as any
_ABOVE, _BELOW = (176, 209, 206), (226, 224, 217)  # power above and below that of white noise
_FINE = 4  # curves are drawn so many times larger and reduced, which smooths them
_LOW, _HIGH = -3.0, 4.0  # range of the spectrum, powers of two
_MOST = math.sqrt(0.5)  # cycles per patch of a chequerboard
_SMALL = 21  # letters under the spectrum, pixels


def mask_tile(hidden: Tensor, ground: Image.Image | None, size: Size) -> Image.Image:
    """One mask (h, w) bool: visible patches show the photograph, or are filled; hidden ones are pale."""
    if ground is None:
        colours = torch.where(rearrange(hidden, "h w -> h w 1"), torch.tensor(HIDDEN), torch.tensor(ACCENT))
        return _set_apart(colours, size)
    cover = Image.fromarray((hidden.to(torch.uint8) * 255).numpy()).resize(size, Image.Resampling.NEAREST)
    return Image.composite(_faded(ground), ground, cover)


def frequency_tile(frequency: Tensor, size: Size) -> Image.Image:
    """How often each patch is hidden, (h, w) float, around its mean: the more colour, the farther from it."""
    return _set_apart(_around_mean(frequency, frequency.mean().item()), size)


def frequency_scale(mean: float, size: Size) -> Image.Image:
    """The colours of frequency_tile from never hidden, at the left, to always hidden."""
    line = _around_mean(torch.linspace(0, 1, size[0]).expand(size[1], -1), mean)
    return Image.fromarray(line.to(torch.uint8).numpy())


def spectrum_tile(coverage: Coverage, size: Size) -> Image.Image:
    """The spectrum around the line of white noise, over the shares of its bands in percent."""
    tile = Image.new("RGB", size, PAPER)
    left, plot = 34, (size[0] - 34, size[1] - 28)
    tile.paste(_curve(coverage, plot), (left, 0))
    draw = ImageDraw.Draw(tile)
    for power, words in ((2, "4"), (0, "1"), (-2, "1/4")):
        draw.text((left - 6, _y(2.0**power, plot[1])), words, FAINT, font=font(_SMALL - 3), anchor="rm")
    edges = (0.0, *BANDS, _MOST)
    for low, high, share in zip(edges, edges[1:], coverage.bands, strict=False):
        if high < coverage.spectrum[0][0]:
            continue  # no wave of the grid is as long
        middle = left + (low + high) / 2 / _MOST * plot[0]
        draw.text((middle, size[1]), f"{100 * share:.0f}", INK, font=font(_SMALL), anchor="md")
    return tile


def _curve(coverage: Coverage, size: Size) -> Image.Image:
    width, height = size[0] * _FINE, size[1] * _FINE
    plot = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(plot)
    frequencies, powers = zip(*coverage.spectrum, strict=True)
    first, last = (int(frequency / _MOST * width) for frequency in (frequencies[0], frequencies[-1]))
    xs = np.arange(first, max(last, first + 10 * _FINE))  # the smallest grids have one frequency: a dash
    ys = np.interp(xs, np.array(frequencies) / _MOST * width, [_y(power, height) for power in powers])
    level = _y(1.0, height)
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        draw.line([(x, level), (x, y)], _ABOVE if y < level else _BELOW)
    for edge in BANDS:
        border = edge / _MOST * width
        draw.line([(border, 0), (border, height)], RULE, _FINE)
    draw.line([(0, level), (width, level)], FAINT, _FINE)
    draw.line(list(zip(xs.tolist(), ys.tolist(), strict=True)), INK, 2 * _FINE, joint="curve")
    draw.rectangle((0, 0, width - 1, height - 1), None, RULE, _FINE)
    return plot.resize(size, Image.Resampling.LANCZOS)


def _y(power: float, height: int) -> float:
    """Where a power is, on a logarithmic axis; beyond its ends, at them."""
    place = math.log2(max(power, 1e-9))
    return (1 - (min(max(place, _LOW), _HIGH) - _LOW) / (_HIGH - _LOW)) * (height - 1)


def _around_mean(values: Tensor, mean: float) -> Tensor:
    """Colours (h, w, 3) of values (h, w) in 0..1."""
    more = rearrange(((values - mean) / max(1 - mean, 1e-9)).clamp(0, 1), "h w -> h w 1")
    less = rearrange(((mean - values) / max(mean, 1e-9)).clamp(0, 1), "h w -> h w 1")
    even, visible, hidden = (torch.tensor(colour, dtype=torch.float32) for colour in (_EVEN, ACCENT, OTHER))
    return even + (visible - even) * less + (hidden - even) * more


def _set_apart(colours: Tensor, size: Size) -> Image.Image:
    """Patches of colours (h, w, 3), with a thin line between them where there is room."""
    tile = Image.fromarray(colours.round().to(torch.uint8).numpy()).resize(size, Image.Resampling.NEAREST)
    patch = size[0] // colours.shape[1]
    if patch >= 6:
        draw = ImageDraw.Draw(tile)
        for x in range(patch - 1, size[0] - 1, patch):
            draw.line([(x, 0), (x, size[1])], PAPER)
        for y in range(patch - 1, size[1] - 1, patch):
            draw.line([(0, y), (size[0], y)], PAPER)
    return tile


def _faded(ground: Image.Image) -> Image.Image:
    """The photograph as a pale grey shadow of itself."""
    return Image.blend(ImageOps.grayscale(ground).convert("RGB"), Image.new("RGB", ground.size, _SHADOW), 0.8)
