"""What masks are like, in numbers: how near visible patches are to each other and to hidden ones, and the spectrum.

How hard a mask is to fill shows in how near the visible patches are: scattered ones leave a neighbour to copy from
nearly everywhere, clustered ones leave regions that must be understood. The spectrum says at which size patches
cluster; that of white noise is flat (ColorMAE, Hinojosa et al., ECCV 2024, names masks by the colour of theirs)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor

BANDS = (0.12, 0.25, 0.38)  # where one band of the spectrum ends and the next begins, cycles per patch


@dataclass(frozen=True)
class Coverage:
    """What masks of one strategy have in common, averaged over many draws. Neighbours are the up to 4 beside a patch,
    distances are between centres, in patches."""

    share_visible: float  # K / N
    visible_neighbours: float  # of a visible patch, how many of its neighbours are visible too
    share_isolated: float  # of the visible patches, how many have no visible neighbour
    components: float  # number of groups in which visible patches hang together
    distance: float  # from a hidden patch to the nearest visible one
    farthest: float  # the same for the hidden patch of an image that is farthest from any visible one
    bands: tuple[float, float, float, float]  # shares of a mask's power that lie between BANDS; they add up to 1
    spectrum: tuple[tuple[float, float], ...]  # (cycles per patch, power), ascending; white noise has 1 everywhere
    unevenness: float  # standard deviation over patches of how often each is hidden


def coverage(hidden: Tensor) -> Coverage:
    """The numbers of masks hidden (B, h, w) bool on the CPU; each must hide something and show something."""
    visible = ~hidden
    neighbours = _visible_neighbours(visible)[visible]
    nearest = _nearest_visible(hidden)
    frequencies, power = power_spectrum(hidden)
    return Coverage(
        share_visible=visible.float().mean().item(),
        visible_neighbours=neighbours.float().mean().item(),
        share_isolated=(neighbours == 0).float().mean().item(),
        components=_components(visible).float().mean().item(),
        distance=nearest[hidden].mean().item(),
        farthest=nearest.amax((1, 2)).mean().item(),
        bands=_bands(frequencies, power),
        spectrum=_radial(frequencies, power, 1 / max(hidden.shape[1:])),
        unevenness=hidden.float().mean(0).std(correction=0).item(),
    )


def power_spectrum(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The frequency of every wave that fits into the grid, cycles per patch, and the mean power of masks (B, h, w) bool
    at it, both (h w - 1,) float; the constant is left out. Powers are divided by their mean: those of masks
    without structure are all 1."""
    height, width = hidden.shape[1:]
    down, across = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    frequencies = torch.hypot(rearrange(down, "h -> h 1"), rearrange(across, "w -> 1 w"))
    power = reduce(torch.fft.fft2(hidden.float()).abs() ** 2, "b h w -> h w", "mean")
    power = rearrange(power, "h w -> (h w)")[1:]
    return rearrange(frequencies, "h w -> (h w)")[1:], power / power.mean()


def _bands(frequencies: Tensor, power: Tensor) -> tuple[float, float, float, float]:
    band = torch.bucketize(frequencies - 1e-6, torch.tensor(BANDS))  # a wave on a border belongs to the lower band
    first, second, third, fourth = (power[band == index].sum().item() / power.sum().item() for index in range(4))
    return first, second, third, fourth


def _radial(frequencies: Tensor, power: Tensor, width: float) -> tuple[tuple[float, float], ...]:
    """Frequency and power, averaged over rings so many cycles per patch wide."""
    ring = (frequencies / width).round().long()
    counts = torch.bincount(ring)
    there = counts > 0
    sums = (torch.bincount(ring, values.double())[there] / counts[there] for values in (frequencies, power))
    return tuple(zip(*(column.tolist() for column in sums), strict=True))


def _visible_neighbours(visible: Tensor) -> Tensor:
    """How many of the up to 4 neighbours of each patch are visible, (B, h, w) int8."""
    count = torch.zeros(visible.shape, dtype=torch.int8)
    count[:, 1:] += visible[:, :-1]
    count[:, :-1] += visible[:, 1:]
    count[:, :, 1:] += visible[:, :, :-1]
    count[:, :, :-1] += visible[:, :, 1:]
    return count


def _nearest_visible(hidden: Tensor) -> Tensor:
    """Distance of each patch to the nearest visible one of its image, (B, h, w) float: first along columns, then, since
    squares add up, over the columns of the grid."""
    height, width = hidden.shape[1:]
    far = torch.where(hidden, float(4 * (height + width) ** 2), 0.0)  # stands for infinity, and stays exact in float32
    rows, columns = torch.arange(height), torch.arange(width)
    along = torch.full_like(far, float("inf"))
    for row in range(height):
        torch.minimum(along, far[:, row : row + 1] + rearrange((rows - row) ** 2, "h -> h 1"), out=along)
    nearest = torch.full_like(far, float("inf"))
    for column in range(width):
        torch.minimum(nearest, along[:, :, column : column + 1] + (columns - column) ** 2, out=nearest)
    return nearest.sqrt_()


def _components(visible: Tensor) -> Tensor:
    """Into how many groups of neighbours the visible patches of each mask fall, (B,) int64.

    Every patch takes the lowest number among itself and its neighbours, then the number of the patch that it names,
    until nothing changes: whoever still has its own number then is the first of its group."""
    height, width = visible.shape[1:]
    own = torch.arange(height * width)
    nobody = height * width
    flat = rearrange(visible, "b h w -> b (h w)")
    numbers = torch.where(flat, own, nobody)
    while True:
        plane = rearrange(numbers, "b (h w) -> b h w", h=height)
        lowest = plane.clone()
        torch.minimum(lowest[:, 1:], plane[:, :-1], out=lowest[:, 1:])
        torch.minimum(lowest[:, :-1], plane[:, 1:], out=lowest[:, :-1])
        torch.minimum(lowest[:, :, 1:], plane[:, :, :-1], out=lowest[:, :, 1:])
        torch.minimum(lowest[:, :, :-1], plane[:, :, 1:], out=lowest[:, :, :-1])
        named = torch.where(flat, rearrange(lowest, "b h w -> b (h w)"), 0)
        after = torch.where(flat, numbers.gather(1, named), nobody)
        after = torch.minimum(after, torch.where(flat, named, nobody))
        if torch.equal(after, numbers):
            return (numbers == own).sum(1)
        numbers = after
