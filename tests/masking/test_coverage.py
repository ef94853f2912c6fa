"""Numbers of masks: hand-worked cases, a slow second opinion on random masks, and what chance says of white noise."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking.coverage import coverage, power_spectrum
from masking.draw import draw
from masking.mask import Grid
from masking.strategies.uniform import Uniform


def masks(*pictures):
    """Masks from pictures of "V" (visible) and "." (hidden), rows apart by blanks."""
    rows = [[[patch != "V" for patch in row] for row in picture.split()] for picture in pictures]
    return torch.tensor(rows)


def test_one_patch_in_a_corner():
    numbers = coverage(masks("V.. ... ..."))
    assert numbers.share_visible == pytest.approx(1 / 9)
    assert (numbers.visible_neighbours, numbers.share_isolated, numbers.components) == (0, 1, 1)
    assert numbers.distance == pytest.approx((1 + 1 + 2 + 2 + 2**0.5 + 2 * 5**0.5 + 8**0.5) / 8)
    assert numbers.farthest == pytest.approx(8**0.5)


def test_a_bend_and_a_patch_alone():
    #   V V . .     neighbours 1 + 2 + 1 + 0 of 4 visible patches; distances of hidden ones:
    #   V . . .                 1 2            1 sqrt2 1       (1, 1) (1, 2) (1, 3)
    #   . . . V      1 sqrt2 1              2 sqrt5 sqrt2 1
    #   . . . .
    numbers = coverage(masks("VV.. V... ...V ...."))
    assert (numbers.visible_neighbours, numbers.share_isolated, numbers.components) == (1, 1 / 4, 2)
    expected = [1, 2, 1, 2**0.5, 1, 1, 2**0.5, 1, 2, 5**0.5, 2**0.5, 1]
    assert numbers.distance == pytest.approx(sum(expected) / 12)
    assert numbers.farthest == pytest.approx(5**0.5)


def test_numbers_of_several_masks_are_averaged_the_farthest_patch_first_within_each():
    numbers = coverage(masks("V... ....", "VV.. ...."))
    assert numbers.farthest == pytest.approx((10**0.5 + 5**0.5) / 2)
    assert (numbers.components, numbers.share_visible) == (1, 3 / 16)
    assert numbers.visible_neighbours == pytest.approx(2 / 3)  # of the three visible patches, not of the two masks


def test_a_chequerboard_touches_at_corners_only_and_is_one_wave():
    hidden = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0
    numbers = coverage(hidden[None])
    assert (numbers.visible_neighbours, numbers.share_isolated, numbers.components) == (0, 1, 32)
    assert (numbers.distance, numbers.farthest) == (1, 1)
    assert numbers.bands == pytest.approx((0, 0, 0, 1), abs=1e-6)
    frequencies, power = power_spectrum(hidden[None])
    assert frequencies[power.argmax()] == pytest.approx(0.5**0.5)
    assert power.max() == pytest.approx(63)  # of 63 waves, whose mean is 1


def test_a_wave_on_the_border_of_a_band_is_in_the_lower_one():
    stripes = (torch.arange(16) // 2 % 2 == 0).expand(8, 16)  # 4 patches a period: 0.25 cycles a patch
    assert coverage(stripes[None]).bands == pytest.approx((0, 1, 0, 0), abs=1e-6)
    assert coverage(stripes.T[None]).bands == pytest.approx((0, 1, 0, 0), abs=1e-6)
    numbers = coverage(stripes[None])
    assert (numbers.components, numbers.visible_neighbours) == (4, (1 + 2 * 7 / 8))


def test_bands_end_where_they_say():
    for period, band in ((10, 0), (8, 1), (4, 1), (3, 2), (2, 3)):  # 0.1, 0.125, 0.25, 0.333, 0.5 cycles a patch
        wave = torch.cos(2 * math.pi * (torch.arange(120) + 0.25) / period) > 0
        bands = coverage(wave.expand(6, 120)[None]).bands
        assert max(range(4), key=lambda index: bands[index]) == band, period


def test_a_spiral_is_one_group():
    spiral = """VVVVVVVVV ........V VVVVVVV.V V.....V.V V.VVV.V.V V.V...V.V V.VVVVV.V V.......V VVVVVVVVV"""
    hidden = masks(spiral)
    assert coverage(hidden).components == 1
    hidden[0, 8, 4] = True  # cut
    assert coverage(hidden).components == 2


def test_unevenness_is_about_places_not_about_masks():
    half = masks("VV VV .. ..")
    assert coverage(torch.cat([half, ~half])).unevenness == 0
    assert coverage(torch.cat([half, half])).unevenness == pytest.approx(0.5)


def test_white_noise_has_flat_power_and_the_neighbours_that_chance_gives():
    hidden = draw(Uniform(), Grid(14, 14), torch.arange(4000), 0, 0).hidden.reshape(-1, 14, 14)
    numbers = coverage(hidden)
    assert [power for _, power in numbers.spectrum] == pytest.approx([1.0] * len(numbers.spectrum), rel=0.04)
    frequencies, _ = power_spectrum(hidden)
    for (low, high), share in zip(pairwise((0, 0.12, 0.25, 0.38, 1)), numbers.bands, strict=True):
        expected = ((frequencies > low) & (frequencies <= high)).float().mean().item()
        assert share == pytest.approx(expected, rel=0.03)
    mean_degree = 2 * (2 * 14 * 13) / 196
    assert numbers.visible_neighbours == pytest.approx(mean_degree * 48 / 195, rel=0.01)
    assert numbers.unevenness == pytest.approx((0.25 * 0.75 / 4000) ** 0.5, rel=0.2)


def by_hand(hidden):
    """Neighbours, isolated share, groups, distance and farthest of one mask (h, w), patch by patch."""
    places = [(y, x) for y in range(len(hidden)) for x in range(len(hidden[0]))]
    seen = {place for place in places if not hidden[place[0]][place[1]]}
    beside = {(y, x): {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & seen for y, x in seen}
    nearest = [min(math.dist(place, other) for other in seen) for place in places if place not in seen]
    groups, left = 0, set(seen)
    while left:
        groups += 1
        front = [left.pop()]
        while front:
            reached = beside[front.pop()] & left
            left -= reached
            front += reached
    counts = [len(found) for found in beside.values()]
    return (
        sum(counts) / len(counts), counts.count(0) / len(counts), groups, sum(nearest) / len(nearest), max(nearest),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 12), st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_random_masks_agree_with_the_patch_by_patch_count(height, width, seed, share):
    hidden = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share
    hidden.view(-1)[0], hidden.view(-1)[-1] = True, False
    numbers = coverage(hidden[None])
    assert (
        numbers.visible_neighbours, numbers.share_isolated, numbers.components, numbers.distance, numbers.farthest,
    ) == pytest.approx(by_hand(hidden.tolist()), rel=1e-5)  # fmt: skip
    assert sum(numbers.bands) == pytest.approx(1)
    frequencies = [frequency for frequency, _ in numbers.spectrum]
    assert frequencies == sorted(frequencies)
    assert frequencies[0] > 0
