"""Masks and their numbers of every strategy, as tensors; `pretrain/tracking/masks_sheet.py` makes the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

import torch
from einops import rearrange
from torch import Tensor

from masking.coverage import Coverage, coverage
from masking.draw import MaskStrategy, draw
from masking.importance import box_coverage
from masking.mask import Grid
from masking.ratio import FixedRatio
from masking.rng import generator
from masking.strategies import all_strategies

__all__ = ["Coverage", "Exhibit", "Refusal", "coverage", "exhibit", "exhibit_or_refusal", "gallery", "variants"]


@dataclass(frozen=True)
class Exhibit:
    """One strategy in the gallery."""

    name: str  # its class, and which variant of it
    summary: str  # the first line of its docstring
    settings: str  # how to ask for it on the command line
    guided: bool  # whether it looks at the image
    hidden: Tensor  # (B, h, w) bool, a few masks
    frequency: Tensor  # (h, w) float, how often each patch was hidden over all draws
    coverage: Coverage


@dataclass(frozen=True)
class Refusal:
    """A strategy that has no masks of this grid and ratio."""

    name: str
    summary: str
    settings: str
    why: str  # its own sentence


def gallery(
    grid: Grid,
    ratio: float = 0.75,
    num_masks: int = 6,
    num_draws: int = 512,
    seed: int = 0,
    detail: Tensor | None = None,
) -> list[Exhibit | Refusal]:
    """Every variant of every strategy there is, hiding the given share of the patches; see exhibit()."""
    return [
        exhibit_or_refusal(name, strategy, grid, num_masks, num_draws, seed, detail)
        for name, strategy in variants(ratio).items()
    ]


def variants(ratio: float, wanted: Sequence[str] = ()) -> dict[str, MaskStrategy]:
    """What there is to show, by name; only the classes or variants that are wanted, upper or lower case, where any are
    named. ValueError for a name that nothing has."""
    known: dict[str, dict[str, MaskStrategy]] = {}
    for kind in all_strategies():
        shown = kind.variants(FixedRatio(ratio))
        known |= {name: {name: strategy} for name, strategy in shown.items()}
        if shown:
            known[kind.__name__] = shown
    if not wanted:
        return {name: strategy for shown in known.values() for name, strategy in shown.items()}
    lower = {name.lower(): shown for name, shown in known.items()}
    unknown = next((name for name in wanted if name.lower() not in lower), None)
    if unknown is not None:
        allowed = ", ".join(name for name in known if ":" not in name)
        raise ValueError(f"{unknown} is no mask strategy with masks of its own to show; these are: {allowed}")
    return {name: strategy for word in wanted for name, strategy in lower[word.lower()].items()}


def exhibit_or_refusal(
    name: str,
    strategy: MaskStrategy,
    grid: Grid,
    num_masks: int = 6,
    num_draws: int = 512,
    seed: int = 0,
    detail: Tensor | None = None,
) -> Exhibit | Refusal:
    """exhibit(), or what the strategy says against this grid and ratio."""
    try:
        strategy.check(grid, strategy.ratio.num_visible(grid, generator(seed, "ratio", 0)))
    except ValueError as error:
        return Refusal(name, _summary(strategy), settings(strategy), str(error))
    return exhibit(name, strategy, grid, num_masks, num_draws, seed, detail)


def exhibit(
    name: str,
    strategy: MaskStrategy,
    grid: Grid,
    num_masks: int = 6,
    num_draws: int = 512,
    seed: int = 0,
    detail: Tensor | None = None,
) -> Exhibit:
    """One strategy's masks and their numbers; the masks shown are the first of the num_draws that are measured.

    detail (P, N) float is the importance of the patches of P images, handed to strategies that ask for guidance; draw i
    is of image i modulo P. Where it is None, every draw has an imagined object of its own.
    """
    rows = torch.arange(num_draws)
    guidance = None
    if strategy.guided_by is not None:
        guidance = _imagined(strategy.guided_by == "boxes", grid, num_draws, seed) if detail is None else detail
        if detail is not None and strategy.guided_by == "boxes":  # there are none: the region is where much happens
            guidance = (detail > detail.mean(1, keepdim=True)).float()
        guidance = guidance[rows % len(guidance)]
    mask = draw(strategy, grid, rows, seed, 0, guidance)
    hidden = rearrange(mask.hidden, "b (h w) -> b h w", h=grid.height)
    return Exhibit(
        name=name,
        summary=_summary(strategy),
        settings=settings(strategy),
        guided=guidance is not None,
        hidden=hidden[:num_masks],
        frequency=hidden.float().mean(0),
        coverage=coverage(hidden),
    )


def settings(strategy: MaskStrategy) -> str:
    """The settings that ask for it, as in `mask=ColorNoise mask.color=red`, without the ratio and nested strategies."""
    words = [f"mask={type(strategy).__name__}"]
    for field in fields(strategy):  # type: ignore[arg-type]
        value = getattr(strategy, field.name)
        if isinstance(value, str | int | float) and field.default is not MISSING and value != field.default:
            words.append(f"mask.{field.name}={value}")
    return " ".join(words)


def _summary(strategy: MaskStrategy) -> str:
    lines = (type(strategy).__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""


def _imagined(box: bool, grid: Grid, num_images: int, seed: int) -> Tensor:
    """Importance (B, N) float of imagined objects, each somewhere near the middle: a box's share of every patch, or a
    smooth hill."""
    rng = generator(seed, "gallery", "objects")
    centre = 0.3 + 0.4 * torch.rand(num_images, 2, generator=rng)  # left and top, in shares of the image
    half = 0.15 + 0.15 * torch.rand(num_images, 2, generator=rng)
    if box:
        corners = torch.cat([centre - half, centre + half], dim=1)
        return box_coverage(rearrange(corners, "b xyxy -> b 1 xyxy"), grid)
    across, down = (
        (rearrange((torch.arange(length) + 0.5) / length, "n -> 1 n") - rearrange(centre[:, i], "b -> b 1"))
        / rearrange(half[:, i], "b -> b 1")
        for i, length in enumerate((grid.width, grid.height))
    )
    hill = torch.exp(-(rearrange(down, "b h -> b h 1") ** 2 + rearrange(across, "b w -> b 1 w") ** 2))
    return rearrange(hill, "b h w -> b (h w)")
