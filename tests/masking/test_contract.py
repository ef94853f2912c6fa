"""What every mask strategy owes: found by being in masking/strategies, tested without being named."""

import dataclasses
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from masking.draw import Rows, draw
from masking.mask import Grid, Mask
from masking.ratio import FixedRatio
from masking.rng import generator
from masking.strategies import all_strategies

GRIDS = [Grid(14, 14), Grid(6, 10), Grid(12, 5)]
BATCH = 12
STRATEGIES = [found() for found in all_strategies()]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.height}x{g.width}")


def guidance(strategy, grid, rows):
    """Importance per patch for strategies that ask, made for the global batch and taken by row, as in training."""
    if not strategy.needs_guidance:
        return None
    return rows.take(torch.rand(BATCH, grid.num_patches, generator=generator(0, "guidance")))


def drawn(strategy, grid, ids, seed=3, step=7):
    rows = Rows(BATCH, torch.tensor(ids))
    return draw(strategy, grid, rows, seed, step, guidance(strategy, grid, rows))


def test_uniform_is_found():
    assert "Uniform" in [found.__name__ for found in all_strategies()]


@every_strategy
@every_grid
def test_counts_are_exact_for_every_image(strategy, grid):
    for hidden in (0.25, 0.5, 0.75, 0.9):
        changed = dataclasses.replace(strategy, ratio=FixedRatio(hidden))
        mask = drawn(changed, grid, range(BATCH))
        num_visible = int(grid.num_patches * (1 - hidden) + 1e-6)
        assert mask.hidden.shape == (BATCH, grid.num_patches)
        assert ((~mask.hidden).sum(1) == num_visible).all()
        assert (mask.ids_keep.diff(dim=1) > 0).all() and (mask.ids_mask.diff(dim=1) > 0).all()


@every_strategy
@every_grid
def test_rows_of_any_split_equal_the_global_draw(strategy, grid):
    whole = drawn(strategy, grid, range(BATCH))
    for world, micro in ((2, 3), (3, 4), (4, 1)):
        for rank in range(world):
            mine = list(range(BATCH))[rank::world]
            for first in range(0, len(mine), micro):
                ids = mine[first : first + micro]
                part = drawn(strategy, grid, ids)
                for field in dataclasses.fields(Mask):
                    assert torch.equal(getattr(part, field.name), getattr(whole, field.name)[ids]), field.name


@every_strategy
def test_a_draw_is_named_by_seed_and_step(strategy):
    grid = GRIDS[0]
    first = drawn(strategy, grid, range(BATCH))
    assert torch.equal(first.order, drawn(strategy, grid, range(BATCH)).order)
    torch.manual_seed(99)  # torch's own generator has no say
    assert torch.equal(first.order, drawn(strategy, grid, range(BATCH)).order)
    assert not torch.equal(first.hidden, drawn(strategy, grid, range(BATCH), step=8).hidden)
    assert not torch.equal(first.hidden, drawn(strategy, grid, range(BATCH), seed=4).hidden)


@every_strategy
def test_cutting_the_order_twice_gives_nested_masks(strategy):
    order = drawn(strategy, GRIDS[1], range(BATCH)).order
    masks = [Mask.from_order(order, num_visible) for num_visible in (5, 20, 40)]
    for few, many in pairwise(masks):
        assert (many.hidden <= few.hidden).all()


@every_strategy
def test_images_of_a_batch_get_different_masks(strategy):
    mask = drawn(strategy, GRIDS[0], range(BATCH))
    assert len({tuple(row) for row in mask.hidden.tolist()}) > 1


@every_strategy
@every_grid
def test_scores_are_finite_and_one_a_patch(strategy, grid):
    rows = Rows(BATCH, torch.tensor([1, 5, 6]))
    scores = strategy.scores(grid, rows, generator(1, "mask", 2), guidance(strategy, grid, rows))
    assert scores.shape == (3, grid.num_patches) and scores.is_floating_point() and scores.isfinite().all()


@every_strategy
def test_a_strategy_is_a_frozen_value(strategy):
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.ratio = FixedRatio(0.5)
    assert strategy == type(strategy)() and hash(strategy) == hash(type(strategy)())


def test_missing_guidance_is_refused_in_words():
    @dataclasses.dataclass(frozen=True)
    class Asking:
        ratio: FixedRatio = dataclasses.field(default_factory=FixedRatio)
        needs_guidance: ClassVar[bool] = True

        def scores(self, grid: Grid, rows: Rows, rng: torch.Generator, guidance: Tensor) -> Tensor:
            return guidance

    with pytest.raises(ValueError, match="Asking needs guidance"):
        draw(Asking(), GRIDS[0], Rows(2, torch.arange(2)), 0, 0)
