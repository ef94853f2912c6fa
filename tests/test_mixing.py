"""Mixup and cutmix: what becomes of a row follows from seed, step and its place in the global batch, and bad images
stay out of good ones."""

import dataclasses

import numpy as np
import pytest
import torch

from pretrain.data.settings import DataConfig
from pretrain.mixing import Draws, MixedBatches, Mixing, mix
from pretrain.types import Batch

BOTH = Mixing(mixup=0.8, cutmix=1.0, prob=0.9, switch_prob=0.5)
SIZE, ROWS, CPU = (12, 20), 16, torch.device("cpu")


def batch_of(rows, weight=None):
    """The rows (B,) of one global batch: an image of noise each, whose label is its row."""
    images = torch.randint(0, 256, (ROWS, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    weight = torch.ones(ROWS) if weight is None else weight
    return Batch(images[rows], rows, weight[rows], rows, 0)


def mixed(world, accumulation, weight=None, mixing=BOTH, step=3):
    """Row of the global batch -> (image, first, second, share), as the ranks make it among them."""
    found = {}
    for rank in range(world):
        mine = torch.arange(rank, ROWS, world).chunk(accumulation)
        batches = MixedBatches([batch_of(rows, weight) for rows in mine], mixing, 7, step, rank, world, CPU)
        for micro, rows in enumerate(mine):
            images, labels = batches.at(micro)
            parts = zip(images, labels.first.tolist(), labels.second.tolist(), labels.share.tolist(), strict=True)
            found.update(zip(rows.tolist(), parts, strict=True))
    return found


@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 1), (4, 2), (8, 1)])
def test_neither_ranks_nor_accumulation_change_a_row(world, accumulation):
    one, other = mixed(1, 1), mixed(world, accumulation)
    assert one.keys() == other.keys()
    for row in one:
        assert torch.equal(one[row][0], other[row][0]) and one[row][1:] == other[row][1:]


def test_the_partner_is_half_a_batch_away_and_another_step_mixes_otherwise():
    one, later = mixed(1, 1), mixed(1, 1, step=4)
    assert all(parts[1] == row and parts[2] == (row + ROWS // 2) % ROWS for row, parts in one.items())
    assert [parts[3] for parts in one.values()] != [parts[3] for parts in later.values()]


def test_a_bad_image_is_in_no_other_and_nothing_else_moves():
    weight = torch.ones(ROWS)
    weight[3] = 0
    always = dataclasses.replace(BOTH, prob=1.0)
    clean, found = mixed(1, 1, mixing=always), mixed(1, 1, weight, always)
    originals = batch_of(torch.arange(ROWS)).images
    for row in (3, 11):
        assert torch.equal(found[row][0], originals[row]) and found[row][3] == 1
        assert not torch.equal(clean[row][0], originals[row])
    assert all(torch.equal(found[row][0], clean[row][0]) for row in range(ROWS) if row not in (3, 11))


def test_pixels_are_the_partners_in_the_box_and_blended_elsewhere_by_hand():
    images, partners = (torch.full((3, 1, 2, 3), value, dtype=torch.uint8) for value in (200, 101))
    share, boxes = torch.tensor([0.25, 2 / 3, 1.0]), torch.tensor([[0, 0, 0, 0], [0, 1, 1, 3], [0, 0, 0, 0]])
    got = mix(images, partners, share, boxes)
    assert got.dtype == torch.uint8 and (got[0] == 126).all()  # 0.25 * 200 + 0.75 * 101 = 125.75
    assert got[1, 0].tolist() == [[200, 101, 101], [200, 200, 200]] and (got[2] == 200).all()


def test_cutmixs_share_is_that_of_the_pixels_left_and_mixups_has_its_distribution():
    cut = dataclasses.replace(BOTH, mixup=0.0, prob=1.0).draw(0, 0, 20_000, SIZE)
    top, bottom, left, right = cut.boxes.T
    np.testing.assert_allclose(cut.share, 1 - (bottom - top) * (right - left) / (SIZE[0] * SIZE[1]), rtol=1e-6)
    assert 0 <= cut.boxes.min() and bottom.max() == SIZE[0] and right.max() == SIZE[1]
    blend = dataclasses.replace(BOTH, cutmix=0.0, prob=1.0).draw(0, 0, 20_000, SIZE)
    assert not blend.boxes.any() and abs(blend.share.mean() - 0.5) < 0.01
    assert abs(blend.share.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.005  # of Beta(a, a)


def test_as_many_rows_are_mixed_and_cut_as_asked():
    draws = Mixing(0.8, 1.0, prob=0.5, switch_prob=0.25).draw(0, 0, 20_000, SIZE)
    assert abs((draws.share < 1).mean() - 0.5) < 0.02 and abs((draws.boxes.any(1)).mean() - 0.125) < 0.01
    assert isinstance(draws.rows(slice(0, 5)), Draws) and Mixing.of(DataConfig(train="unused")) is None
