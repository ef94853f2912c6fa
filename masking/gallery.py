"""Masks and coverage numbers of every strategy, as tensors; `pretrain/tracking/masks_sheet.py` makes the picture.

How hard a mask is to fill shows in how near the visible patches are: scattered ones leave a neighbour to copy from
nearly everywhere, clustered ones leave regions that must be understood.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import conv2d

from masking.draw import MaskStrategy, draw
from masking.mask import Grid
from masking.ratio import FixedRatio
from masking.rng import generator
from masking.strategies import all_strategies


@dataclass(frozen=True)
class Coverage:
    """What masks of one strategy have in common, averaged over many draws."""

    share_visible: float  # K / N
    visible_neighbours: float  # of the up to 4 neighbours of a hidden patch, how many are visible
    share_isolated: float  # of the hidden patches, how many have no visible neighbour among the up to 8 around them
    distance: float  # from a hidden patch to the nearest visible one, in patches, between centres
    unevenness: float  # standard deviation over patches of how often each is hidden


@dataclass(frozen=True)
class Exhibit:
    """One strategy in the gallery."""

    name: str  # its class
    summary: str  # the first line of its docstring
    hidden: Tensor  # (B, h, w) bool, a few masks
    frequency: Tensor  # (h, w) float, how often each patch was hidden over all draws
    coverage: Coverage


def gallery(
    grid: Grid,
    ratio: float = 0.75,
    num_masks: int = 6,
    num_draws: int = 512,
    seed: int = 0,
    detail: Tensor | None = None,
) -> list[Exhibit]:
    """An exhibit for every strategy there is, hiding the given share of the patches.

    detail (N,) float is the importance handed to strategies that ask for guidance; None stands in a smooth blob.
    """
    return [
        exhibit(name, strategy, grid, num_masks, num_draws, seed, detail)
        for kind in all_strategies()
        for name, strategy in kind.variants(FixedRatio(ratio)).items()
    ]


def exhibit(
    name: str,
    strategy: MaskStrategy,
    grid: Grid,
    num_masks: int = 6,
    num_draws: int = 512,
    seed: int = 0,
    detail: Tensor | None = None,
) -> Exhibit:
    """One strategy's masks and coverage; the masks shown are the first of the num_draws that are measured."""
    rows = torch.arange(num_draws)
    guidance = None
    if strategy.guided_by is not None:
        importance = _blob(grid, seed) if detail is None else detail
        guidance = importance.expand(num_draws, -1)
    mask = draw(strategy, grid, rows, seed, 0, guidance)
    hidden = rearrange(mask.hidden, "b (h w) -> b h w", h=grid.height)
    summary = (type(strategy).__doc__ or "").strip().splitlines()
    return Exhibit(
        name=name,
        summary=summary[0] if summary else "",
        hidden=hidden[:num_masks],
        frequency=hidden.float().mean(0),
        coverage=coverage(hidden),
    )


def coverage(hidden: Tensor) -> Coverage:
    """The numbers of masks hidden (B, h, w) bool; each must hide something and show something."""
    visible = (~hidden).float()
    frequency = hidden.float().mean(0)
    return Coverage(
        share_visible=visible.mean().item(),
        visible_neighbours=_around(visible, corners=False)[hidden].mean().item(),
        share_isolated=(_around(visible, corners=True)[hidden] == 0).float().mean().item(),
        distance=_nearest_visible(hidden)[hidden].mean().item(),
        unevenness=frequency.std(correction=0).item(),
    )


def _around(visible: Tensor, *, corners: bool) -> Tensor:
    """How many of the 4 (with corners 8) neighbours of each patch are visible, (B, h, w) float."""
    kernel = torch.tensor([[1.0, 1, 1], [1, 0, 1], [1, 1, 1]] if corners else [[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    counts = conv2d(rearrange(visible, "b h w -> b 1 h w"), rearrange(kernel, "h w -> 1 1 h w"), padding=1)
    return rearrange(counts, "b 1 h w -> b h w")


def _nearest_visible(hidden: Tensor) -> Tensor:
    """Distance of each patch to the nearest visible one of its image, (B, h, w) float."""
    height, width = hidden.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    between = torch.cdist(places, places)
    result = torch.empty(hidden.shape)
    for b, image in enumerate(hidden.flatten(1)):
        result[b] = between[:, ~image].min(1).values.view(height, width)
    return result


def _blob(grid: Grid, seed: int) -> Tensor:
    """Importance (N,) of an imagined object: high around a point near the middle."""
    rng = generator(seed, "gallery", "blob")
    centre = torch.tensor([grid.height, grid.width]) * (0.35 + 0.3 * torch.rand(2, generator=rng))
    rows, columns = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    away = ((rows - centre[0]) / grid.height) ** 2 + ((columns - centre[1]) / grid.width) ** 2
    return torch.exp(-away / 0.06).flatten()
