"""What every mask strategy owes: found by being in masking/strategies, tested without being named."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from masking.draw import MaskStrategy, Noise, draw, named_noise
from masking.mask import Grid, Mask
from masking.ratio import FixedRatio
from masking.strategies import all_strategies

GRIDS = [Grid(14, 14), Grid(6, 10), Grid(12, 5)]
BATCH = 12
STRATEGIES = {
    name: strategy
    for kind in all_strategies()
    for name, strategy in {**kind.variants(FixedRatio(0.75)), kind.__name__: kind()}.items()
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.height}x{g.width}")


def guidance(strategy, grid, ids):
    """Importance per patch for strategies that ask, made for the global batch and taken by row, as in training."""
    if strategy.guided_by is None:
        return None
    return named_noise(torch.arange(BATCH), 0, "guidance").uniform(grid.num_patches)[ids]


def drawn(strategy, grid, ids, seed=3, step=7, **more):
    ids = torch.tensor(ids)
    return draw(strategy, grid, ids, seed, step, guidance(strategy.at(0), grid, ids), **more)


def test_the_strategies_of_the_papers_are_found():
    names = {kind.__name__ for kind in all_strategies()}
    assert {"Uniform", "ColorNoise", "Block", "InverseBlock", "Coarse"} <= names
    assert {"Guided", "Region", "Mixture", "Schedule"} <= names


@every_grid
@pytest.mark.parametrize("hidden", [0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9])
def test_counts_are_exact_for_every_image(grid, hidden):
    for kind in all_strategies():
        for strategy in kind.variants(FixedRatio(hidden)).values():
            mask = drawn(strategy, grid, range(BATCH))
            num_visible = int(grid.num_patches * (1 - hidden) + 1e-6)
            assert mask.hidden.shape == (BATCH, grid.num_patches)
            assert ((~mask.hidden).sum(1) == num_visible).all()
            assert (mask.ids_keep.diff(dim=1) > 0).all() and (mask.ids_mask.diff(dim=1) > 0).all()
            raster = torch.arange(grid.num_patches).expand(BATCH, -1)
            assert torch.equal(torch.cat([mask.ids_keep, mask.ids_mask], 1).gather(1, mask.ids_restore), raster)
            assert torch.equal(mask.order.sort(1).values, raster)


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
    torch.rand(3)
    assert torch.equal(first.order, drawn(strategy, grid, range(BATCH)).order)
    if getattr(strategy, "choice", None) == "top":
        return  # nothing is drawn: the importance decides
    assert not torch.equal(first.hidden, drawn(strategy, grid, range(BATCH), step=8).hidden)
    assert not torch.equal(first.hidden, drawn(strategy, grid, range(BATCH), seed=4).hidden)


@every_strategy
def test_masks_do_not_depend_on_the_device(strategy):
    """Here: nothing asks for another device than the rows'. The test below has the rest."""
    with torch.device("meta"):  # what is created without naming a device lands here, and cannot be computed with
        ids = torch.arange(BATCH, device="cpu")
        given = None if strategy.guided_by is None else torch.ones(BATCH, 60, device="cpu")
        assert drawn_on_cpu(strategy.at(0), ids, given).hidden.device.type == "cpu"


@pytest.mark.gpu
@every_strategy
def test_a_gpu_draws_the_masks_that_a_cpu_draws(strategy):
    ids, given = torch.arange(256), torch.rand(256, 196)
    given = given if strategy.at(0).guided_by else None
    cpu = draw(strategy, GRIDS[0], ids, 1, 2, given)
    gpu = draw(strategy, GRIDS[0], ids, 1, 2, None if given is None else given.cuda(), device="cuda")
    differ = (cpu.hidden != gpu.hidden.cpu()).float().mean()
    rounds = type(strategy).__name__ in ("Block", "InverseBlock", "Guided", "Mixture", "Schedule")  # exp and log do
    assert differ <= (0.002 if rounds else 0)


def drawn_on_cpu(strategy, ids, given):
    return draw(strategy, Grid(6, 10), ids, 1, 2, given if strategy.guided_by else None, device="cpu")


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
def test_a_strategy_has_nothing_against_its_own_defaults_and_may_be_checked_on_any_grid(strategy, grid):
    strategy.check(grid, strategy.ratio.num_visible(grid, torch.Generator()))


@every_strategy
def test_a_strategy_is_a_frozen_value(strategy):
    name = dataclasses.fields(strategy)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(strategy, name, None)
    assert strategy == dataclasses.replace(strategy) and hash(strategy) == hash(dataclasses.replace(strategy))


def test_missing_guidance_and_guidance_that_nobody_takes_are_refused_in_words():
    strategies = {kind.__name__: kind for kind in all_strategies()}
    with pytest.raises(ValueError, match="Guided is guided by 'objective' and got no guidance"):
        draw(strategies["Guided"](), GRIDS[0], torch.arange(2), 0, 0)
    with pytest.raises(ValueError, match="Uniform takes no guidance"):
        draw(strategies["Uniform"](), GRIDS[0], torch.arange(2), 0, 0, torch.ones(2, 196))


def test_a_strategy_with_neither_scores_nor_order_says_so():
    @dataclasses.dataclass(frozen=True)
    class Empty(MaskStrategy):
        ratio: FixedRatio = dataclasses.field(default_factory=FixedRatio)

    with pytest.raises(NotImplementedError, match="Empty has neither scores nor order"):
        draw(Empty(), GRIDS[0], torch.arange(2), 0, 0)


def test_the_numbers_of_a_row_are_its_own():
    rows = torch.tensor([5, 0, 2**40, 7])
    noise = Noise(99, rows, rows)
    whole = noise.uniform(50, "a")
    assert whole.dtype == torch.float32 and (whole >= 0).all() and (whole < 1).all()
    assert torch.equal(noise.take(torch.tensor([2, 0])).uniform(50, "a"), whole[[2, 0]])
    assert torch.equal(noise.uniform(20, "a"), whole[:, :20])
    assert not torch.equal(noise.uniform(50, "b"), whole)


def test_the_numbers_are_uniform_and_independent():
    rows = torch.arange(4000)
    noise = named_noise(rows, 7, "mask", 3)
    one, other = noise.uniform(256, "a").double(), noise.uniform(256, "b").double()
    next_step = named_noise(rows, 7, "mask", 4).uniform(256, "a").double()
    counts = torch.histc(one.float(), bins=1024, min=0, max=1)
    assert ((counts - 1000).square() / 1000).sum() < 1024 + 5 * (2 * 1024) ** 0.5  # chi-square
    pairs = {
        "names": (one, other), "steps": (one, next_step), "rows": (one[1:], one[:-1]),
        "indices": (one[:, 1:], one[:, :-1]), "far indices": (one[:, 128:], one[:, :128]),
    }  # fmt: skip
    for what, (x, y) in pairs.items():
        correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
        assert abs(correlation) < 5 / one.numel() ** 0.5, what
    assert len(one.flatten().unique()) > one.numel() * 0.96  # of 2**24 values, as chance has it
