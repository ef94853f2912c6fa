"""What each strategy promises beyond the contract: its paper's definition, worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from masking.draw import draw, named_noise
from masking.mask import Grid
from masking.ratio import FixedRatio
from masking.strategies import all_strategies
from masking.strategies.block import Block
from masking.strategies.coarse import Coarse
from masking.strategies.guided import Guided
from masking.strategies.inverse_block import InverseBlock
from masking.strategies.mixture import Mixture
from masking.strategies.region import Region
from masking.strategies.schedule import Phase, Schedule
from masking.strategies.uniform import Uniform

GRID = Grid(14, 14)
NUM = 2000


def hidden(strategy, grid=GRID, num=NUM, guidance=None, **more):
    """(num, h, w) bool."""
    mask = draw(strategy, grid, torch.arange(num), 3, 5, guidance, **more)
    return mask.hidden.reshape(num, grid.height, grid.width)


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the CPU wait for a device: reading a number, or a size that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default, torch.ops.aten.equal.default,
        ), f"{func} waits for the device"  # fmt: skip
        return func(*args, **(kwargs or {}))


STRATEGIES = {name: s for kind in all_strategies() for name, s in kind.variants(FixedRatio(0.75)).items()}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_drawing_waits_for_nothing(strategy):
    guidance = torch.rand(8, 196) if strategy.guided_by else None
    draw(strategy, GRID, torch.arange(8), 0, 0, guidance)  # planes are made before the first step
    with NoWaiting():
        draw(strategy, GRID, torch.arange(8), 0, 1, guidance)


def test_units_are_hidden_whole():
    made = hidden(Coarse(FixedRatio(30 / 49), unit=2))
    units = made.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).float().mean(3)
    assert ((units == 0) | (units == 1)).all()
    assert (units.sum((1, 2)) == 30).all()


def test_units_may_be_cut_off_at_the_edge_and_one_may_be_cut_by_the_ratio():
    made = hidden(Coarse(FixedRatio(0.6), unit=4), Grid(6, 10), 50)
    assert (made.sum((1, 2)) == 36).all()
    for image in made:
        parts = [image[y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4, 8)]
        assert sum(bool(part.any() and not part.all()) for part in parts) <= 1


@pytest.mark.parametrize(
    ("strategy", "grid"),
    [(Coarse(FixedRatio(0.9)), Grid(6, 10)), (Coarse(FixedRatio(0.5), unit=5), Grid(8, 8)),
     (InverseBlock(FixedRatio(0.2)), Grid(8, 8)), (InverseBlock(FixedRatio(0.7)), Grid(5, 9))],
)  # fmt: skip
def test_what_the_count_cuts_prefers_no_place(strategy, grid):
    share = hidden(strategy, grid, 8000).float().mean(0)
    ratio = float(share.mean())
    if isinstance(strategy, Coarse) and strategy.unit == 5:  # units of different sizes: only mirror images are alike
        assert (share[:5, :5].std() < 0.02) and (share[:5, :5].max() - share[:5, :5].min() < 0.04)
        return
    assert (share - ratio).abs().max() < 5 * (ratio * (1 - ratio) / 8000) ** 0.5


def test_blocks_are_the_rectangles_drawn_one_after_the_other():
    strategy = Block(FixedRatio(0.5))
    noise = named_noise(torch.arange(60), 3, "mask", 5)
    tall, wide, top, left = (part.long() for part in strategy._rectangles(GRID, 98, noise))
    for image, made in enumerate(hidden(strategy, num=60)):
        covered = torch.zeros(14, 14, dtype=torch.bool)
        for t in range(tall.shape[1]):
            block = torch.zeros(14, 14, dtype=torch.bool)
            y, x = top[image, t], left[image, t]
            block[y : y + tall[image, t], x : x + wide[image, t]] = True
            assert int(block.sum()) == tall[image, t] * wide[image, t]  # inside the image, whole
            if int((covered | block).sum()) > 98:
                assert (made & ~covered & ~block).sum() == 0 and (covered & ~made).sum() == 0
                break
            covered |= block
        else:
            pytest.fail("the rectangles never covered half of the image")


def test_blocks_have_the_areas_and_shapes_asked_for():
    strategy = Block(FixedRatio(0.5), min_patches=9, aspect=(0.5, 2.0))
    tall, wide, _, _ = strategy._rectangles(Grid(32, 32), 512, named_noise(torch.arange(500), 1, "x"))
    area, shape = tall * wide, tall / wide
    assert 6 <= area.min() and area.max() <= 560 and 240 < area.median() < 290
    assert (shape > 0.3).all() and (shape < 3.1).all()
    assert 0.95 < shape[area > 60].log().mean().exp() < 1.05


def test_at_high_ratios_blocks_still_hide_the_exact_number():
    assert (hidden(Block(FixedRatio(0.95)), num=200).sum((1, 2)) == 187).all()


def test_an_inverse_block_is_one_rectangle_around_the_edges():
    strategy = InverseBlock(FixedRatio(0.75), aspect=(1.0, 1.0))
    made = ~hidden(strategy, num=300)
    for image in made.numpy():
        rows, columns = image.any(1), image.any(0)
        assert runs(rows) == 1 and runs(columns) == 1  # together on the torus
        spare = rows.sum() * columns.sum() - image.sum()
        assert 0 <= spare < max(rows.sum(), columns.sum())  # all but a part of one row or column
        assert abs(int(rows.sum()) - int(columns.sum())) <= 1
    share = (~hidden(strategy, num=8000)).float().mean(0)
    assert (share - 49 / 196).abs().max() < 0.03


def runs(values):
    """How many runs of True there are around the circle."""
    return int((values & ~np.roll(values, 1)).sum())


def test_an_inverse_block_longer_than_the_grid_spans_it():
    made = ~hidden(InverseBlock(FixedRatio(0.5), aspect=(20.0, 20.0)), num=20)
    assert (made.any(2).sum(1) == 14).all() and (made.any(1).sum(1) <= 8).all()


def test_guided_draws_in_proportion_to_importance():
    importance = torch.tensor([0.5, 0.25, 0.15, 0.1])
    made = ~hidden(Guided(FixedRatio(0.75)), Grid(2, 2), 40_000, importance.expand(40_000, -1))
    torch.testing.assert_close(made.float().mean(0).flatten(), importance, rtol=0, atol=0.01)
    two = ~hidden(Guided(FixedRatio(0.5)), Grid(2, 2), 40_000, importance.expand(40_000, -1))
    p = importance.tolist()
    wanted = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    torch.testing.assert_close(two.float().mean(0).flatten(), torch.tensor(wanted), rtol=0, atol=0.01)


def test_guided_may_keep_or_hide_the_most_important():
    importance = torch.rand(64, 196)
    kept = hidden(Guided(FixedRatio(0.75), choice="top"), num=64, guidance=importance).flatten(1)
    assert (importance.masked_fill(kept, 9).amin(1) >= importance.masked_fill(~kept, -9).amax(1)).all()
    other = hidden(Guided(FixedRatio(0.25), choice="top", keep="low"), num=64, guidance=importance).flatten(1)
    assert torch.equal(other, ~kept)


def test_guided_by_nothing_or_by_infinite_temperature_is_uniform():
    flat = hidden(Guided(FixedRatio(0.75)), num=4000, guidance=torch.zeros(4000, 196)).float().mean(0)
    hot = Guided(FixedRatio(0.75), temperature=1e6)
    hot_share = hidden(hot, num=4000, guidance=torch.rand(1, 196).expand(4000, -1)).float().mean(0)
    for share in (flat, hot_share):
        assert (share - 0.75).abs().max() < 4.5 * (0.75 * 0.25 / 4000) ** 0.5


def box(top, left, bottom, right, num=NUM):
    """Guidance of one box over whole patches."""
    plane = torch.zeros(num, 14, 14)
    plane[:, top:bottom, left:right] = 1
    return plane.flatten(1)


@pytest.mark.parametrize(("inside", "grow"), [(0.9, 0), (0.75, 1), (0.0, 0), (1.0, 2), (0.35, 1)])
def test_a_region_hides_its_exact_share_and_the_rest_makes_up_for_it(inside, grow):
    made = hidden(Region(FixedRatio(0.6), inside=inside, grow=grow), guidance=box(4, 5, 9, 9))
    area = made[:, 4 - grow : 9 + grow, 5 - grow : 9 + grow]
    num = area[0].numel()
    assert (made.sum((1, 2)) == 118).all()
    assert (area.sum((1, 2)) == round(inside * num)).all()
    share = made.float().mean(0)
    outside = (118 - round(inside * num)) / (196 - num)  # (r N - r_in n) / (N - n)
    assert share[0, 0] == pytest.approx(outside, abs=0.05)
    assert share[6, 6] == pytest.approx(round(inside * num) / num, abs=0.05)


@pytest.mark.parametrize("guidance", [box(0, 0, 14, 14), torch.zeros(NUM, 196)], ids=["all", "nothing"])
def test_a_region_of_everything_or_nothing_is_uniform_masking(guidance):
    made = hidden(Region(FixedRatio(0.75)), guidance=guidance)
    assert (made.sum((1, 2)) == 147).all()
    assert (made.float().mean(0) - 0.75).abs().max() < 4.5 * (0.75 * 0.25 / NUM) ** 0.5


def test_where_the_share_cannot_be_had_the_total_stands():
    made = hidden(Region(FixedRatio(0.9), inside=0.0, grow=0), guidance=box(0, 0, 10, 14))
    assert (made.sum((1, 2)) == 177).all()
    assert made[:, 10:].all()  # all of the rest is hidden, and what is missing is hidden inside
    made = hidden(Region(FixedRatio(0.1), inside=1.0, grow=0), guidance=box(0, 0, 10, 14))
    assert (made.sum((1, 2)) == 20).all() and not made[:, 10:].any()


def test_a_region_of_importance_is_what_exceeds_its_mean():
    importance = torch.rand(5, 196)
    region = Region(guided_by="gradient", grow=0).region(GRID, importance)
    assert torch.equal(region, importance > importance.mean(1, keepdim=True))


def test_a_mixture_masks_each_image_by_one_of_its_parts():
    parts = (Uniform(FixedRatio(0.6)), Coarse(FixedRatio(0.6), unit=7), Guided(FixedRatio(0.6), choice="top"))
    guidance = torch.rand(NUM, 196)
    mixed = hidden(Mixture(parts, weights=(1.0, 2.0, 5.0)), guidance=guidance)
    alone = [hidden(part, guidance=guidance if part.guided_by else None) for part in parts]
    same = torch.stack([(mixed == made).all(2).all(1) for made in alone], 1)
    assert (same.sum(1) == 1).all()
    assert same.float().mean(0).tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.04)


def test_a_schedule_is_the_phase_that_has_begun():
    phases = (Phase(0.0, Uniform()), Phase(1.5, Coarse(FixedRatio(0.75))), Phase(3.0, InverseBlock(FixedRatio(0.75))))
    schedule = Schedule(phases)
    assert [type(schedule.at(epoch)).__name__ for epoch in (0, 1.49, 1.5, 2.9, 3, 99)] == [
        "Uniform", "Uniform", "Coarse", "Coarse", "InverseBlock", "InverseBlock",
    ]  # fmt: skip
    assert torch.equal(hidden(schedule, num=9, epoch=2.0), hidden(Coarse(FixedRatio(0.75)), num=9))


MIXED = (Uniform(FixedRatio(0.5)), Block(FixedRatio(0.6)))


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (Coarse(unit=0), "mask.unit=0 on a grid of 14 x 14"),
        (Coarse(unit=14), "from 1 to 13"),
        (Block(min_patches=0), "mask.min_patches=0 with 79 patches to hide; it must be from 1 to 79"),
        (Block(min_patches=80), "mask.min_patches=80"),
        (Block(aspect=(2.0, 1.0)), "mask.aspect=2.0,1.0"),
        (InverseBlock(aspect=(0.0, 1.0)), "mask.aspect=0.0,1.0"),
        (Guided(temperature=0.0), "mask.temperature=0.0"),
        (Region(inside=1.5), "mask.inside=1.5"),
        (Region(grow=14), "mask.grow=14; it must be from 0 to 13"),
        (Mixture((Uniform(),)), "has 1 entries"),
        (Mixture(weights=(1.0,)), "mask.weights=1 for 2 strategies"),
        (Mixture(weights=(1.0, 0.0)), "mask.weights=1,0"),
        (Mixture(MIXED), "number 1 has the ratio"),
        (Mixture((Guided(), Region())), "guided by 'objective' and by 'boxes'"),
        (Mixture((Uniform(), Coarse(FixedRatio(0.75), unit=99))), "mask.unit=99"),
        (Schedule(()), "mask.phases"),
        (Schedule((Phase(1.0, Uniform()),)), "the first must begin at 0"),
        (Schedule((Phase(0.0, Uniform()), Phase(0.0, Uniform()))), "each after the last"),
        (Schedule((Phase(0.0, Guided()), Phase(1.0, Region()))), "guided by 'objective' and by 'boxes'"),
        (Schedule((Phase(0.0, Uniform()), Phase(1.0, Coarse(unit=99)))), "mask.unit=99"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_in_words(strategy, words):
    visible = 117 if isinstance(strategy, Block) else 49
    with pytest.raises(ValueError, match=words):
        strategy.check(GRID, visible)
