"""Coverage numbers of masks: hand-worked cases, and what chance predicts for uniform masks."""

import pytest
import torch

from masking.gallery import coverage, gallery
from masking.mask import Grid
from masking.strategies import all_strategies


def test_numbers_of_a_mask_worked_by_hand():
    #   V h h
    #   h h h
    #   h h h      distances from the corner: 1 1 2 2, sqrt2, 2 x sqrt5, sqrt8
    hidden = torch.ones(1, 3, 3, dtype=torch.bool)
    hidden[0, 0, 0] = False
    numbers = coverage(hidden)
    assert numbers.share_visible == pytest.approx(1 / 9)
    assert numbers.visible_neighbours == pytest.approx(2 / 8)
    assert numbers.share_isolated == pytest.approx(5 / 8)
    assert numbers.distance == pytest.approx((1 + 1 + 2 + 2 + 2**0.5 + 2 * 5**0.5 + 8**0.5) / 8)


def test_a_chequerboard_has_no_isolated_patch_and_every_neighbour_visible():
    hidden = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0
    numbers = coverage(hidden[None])
    inner = hidden[1:-1, 1:-1].sum()
    assert inner > 0 and numbers.share_isolated == 0 and numbers.distance == 1
    assert numbers.visible_neighbours == pytest.approx(7 * 8 * 2 / 32)  # inner edges of the grid over hidden patches


def test_uniform_masks_have_the_neighbours_that_chance_gives():
    uniform = next(item for item in gallery(Grid(14, 14), 0.75, num_draws=400) if item.name == "Uniform")
    edges = 2 * 14 * 13
    expected = edges * 2 / 196 * 49 / 195  # a hidden patch's mean degree times the chance that a neighbour is visible
    assert uniform.coverage.share_visible == 49 / 196
    assert uniform.coverage.visible_neighbours == pytest.approx(expected, rel=0.01)
    assert uniform.coverage.unevenness < 0.03
    assert uniform.frequency.mean().item() == pytest.approx(0.75)


def test_every_strategy_is_in_the_gallery_with_masks_of_the_grid():
    exhibits = gallery(Grid(6, 10), 0.5, num_masks=3, num_draws=8)
    assert [item.name for item in exhibits] == [kind.__name__ for kind in all_strategies()]
    for item in exhibits:
        assert item.hidden.shape == (3, 6, 10) and item.hidden.dtype == torch.bool
        assert item.frequency.shape == (6, 10)
        assert item.summary


def test_the_gallery_is_a_function_of_its_seed():
    one, same, other = (gallery(Grid(6, 6), seed=seed, num_draws=8)[0].hidden for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
