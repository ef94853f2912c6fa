"""ColorMAE's noise: its spectrum, the statistics of its masks, and what must not move them.

The reference numbers were measured on a generator of the same description (5 passes, ranked, wrapped), 14 x 14 patches,
49 of them visible: visible 4-neighbours of a visible patch, share of visible ones with none, mean distance of a
hidden patch to the nearest visible one, the mean of its greatest, and the mask's power in four bands of frequency."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from masking import planes
from masking.draw import draw
from masking.mask import Grid
from masking.planes import PlaneRecipe, make_planes
from masking.strategies.color import ColorNoise
from masking.strategies.uniform import Uniform

GRID = Grid(14, 14)
WHITE, RED, BLUE, GREEN, PURPLE = (ColorNoise(color=c) for c in ("white", "red", "blue", "green", "purple"))
REFERENCE = {  # neighbours, isolated, distance, farthest, bands
    "white": (WHITE, 0.913, 0.352, 1.244, 2.80, (0.041, 0.143, 0.268, 0.548)),
    "red": (RED, 2.957, 0.003, 3.08, 7.53, (0.507, 0.280, 0.111, 0.102)),
    "blue": (BLUE, 0.469, 0.581, 1.151, 2.42, (0.021, 0.076, 0.209, 0.693)),
    "green": (GREEN, 1.733, 0.056, 1.381, 3.13, (0.037, 0.341, 0.339, 0.283)),
    "purple": (PURPLE, 0.983, 0.515, 2.138, 6.18, (0.246, 0.107, 0.108, 0.538)),
    "green 1/2": (ColorNoise(sigmas=(1.0, 2.0)), 2.321, 0.011, 1.709, 3.96, (0.088, 0.536, 0.200, 0.176)),
    "green 1/3": (ColorNoise(sigmas=(1.0, 3.0)), 2.583, 0.007, 2.008, 4.75, (0.234, 0.457, 0.161, 0.148)),
}
NUM = 4096


@lru_cache
def visible(strategy: ColorNoise | Uniform, num: int = NUM, step: int = 0, seed: int = 0) -> np.ndarray:
    """(num, 14, 14) bool."""
    return ~draw(strategy, GRID, torch.arange(num), seed, step).hidden.reshape(-1, 14, 14).numpy()


def neighbours(seen: np.ndarray) -> np.ndarray:
    """How many of its 4 neighbours are visible, for every visible patch of all masks."""
    count = np.zeros(seen.shape, int)
    count[:, 1:] += seen[:, :-1]
    count[:, :-1] += seen[:, 1:]
    count[:, :, 1:] += seen[:, :, :-1]
    count[:, :, :-1] += seen[:, :, 1:]
    return count[seen]


def distances(seen: np.ndarray) -> tuple[float, float]:
    """Mean distance of hidden patches to the nearest visible one, and the mean over masks of the greatest."""
    nearest = [distance_transform_edt(~mask)[~mask] for mask in seen]
    return float(np.mean([d.mean() for d in nearest])), float(np.mean([d.max() for d in nearest]))


def bands(seen: np.ndarray) -> list[float]:
    """Shares of the masks' power at up to .12, .25, .38 cycles per patch, and above."""
    power = (np.abs(np.fft.fft2(seen - seen.mean((1, 2), keepdims=True))) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(14)[:, None], np.fft.fftfreq(14)[None])
    edges = [0, 0.12, 0.25, 0.38, 1]
    return [float(power[(f > low) & (f <= high)].sum() / power.sum()) for low, high in pairwise(edges)]


@pytest.mark.parametrize("name", REFERENCE)
def test_masks_have_the_statistics_of_the_reference(name):
    strategy, near, alone, distance, farthest, power = REFERENCE[name]
    seen = visible(strategy)
    count = neighbours(seen)
    found = (count.mean(), *distances(seen[:NUM]))
    assert found == pytest.approx((near, distance, farthest), rel=0.03)
    assert (count == 0).mean() == pytest.approx(alone, rel=0.03, abs=0.004)
    assert bands(seen) == pytest.approx(power, abs=0.012)


@pytest.mark.parametrize(
    ("name", "near", "distance"), [("red", 2.370, 1.941), ("blue", 0.678, 1.174), ("green", 1.164, 1.266)]
)
def test_the_number_of_passes_matters_as_in_the_reference(name, near, distance):
    """The reference did not rank after its single pass; the order of the values is the same either way."""
    seen = visible(ColorNoise(color=name, passes=1))
    assert neighbours(seen).mean() == pytest.approx(near, rel=0.03)
    assert distances(seen)[0] == pytest.approx(distance, rel=0.03)


def test_colours_are_in_their_order():
    near = {name: neighbours(visible(ColorNoise(color=name))).mean() for name in ("blue", "white", "green", "red")}
    far = {name: distances(visible(ColorNoise(color=name)))[0] for name in near}
    assert list(near) == sorted(near, key=near.__getitem__)
    assert list(far) == sorted(far, key=far.__getitem__)


def radial(color: str, passes: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies, and the radially averaged power of 16 planes of 256 x 256 over its mean."""
    ranks = make_planes(PlaneRecipe(color, planes.SIGMAS[color], passes, 16, 256, 0)).astype(float)
    power = (np.abs(np.fft.fft2(ranks - ranks.mean())) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    edges = np.linspace(0, 0.5, 41)
    ring = np.digitize(f, edges) - 1
    found = np.array([power[ring == index].mean() for index in range(40)])
    return (edges[:-1] + edges[1:]) / 2, found / power.mean()


def test_red_falls_with_frequency():
    _, power = radial("red", 5)
    smooth = power.reshape(-1, 4).mean(1)
    falling = smooth > 0.01  # beyond, what ranking leaves is flat
    assert falling[:4].all() and (np.diff(smooth[falling]) < 0).all()


def test_blue_has_nothing_at_low_frequencies_and_rises_to_the_highest():
    f, power = radial("blue", 5)
    assert (power[(f < 0.15) & (f > 0.02)] < 0.02).all()
    smooth = power[f > 0.1].reshape(-1, 4).mean(1)
    assert (np.diff(smooth) > 0).all()


def test_green_has_one_peak_in_its_band():
    f, power = radial("green", 5)
    smooth = np.convolve(power, np.ones(3) / 3, mode="same")
    top = int(smooth.argmax())
    assert 0.16 <= f[top] <= 0.24
    assert (np.diff(smooth[4 : top + 1]) > 0).all() and (np.diff(smooth[top : top + 8]) < 0).all()
    assert (power[(f < 0.075) & (f > 0.02)] < 0.05).all()
    assert (power[f > 0.4] < 0.3).all()


def test_purple_after_one_pass_has_its_least_inside():
    f, power = radial("purple", 1)
    smooth = np.convolve(power, np.ones(3) / 3, mode="same")
    inner = slice(2, 38)
    assert 0.15 <= f[inner][smooth[inner].argmin()] <= 0.25
    least = smooth[10:30].min()
    assert smooth[2:5].mean() > 2 * least and smooth[34:38].mean() > 2 * least


def test_every_position_is_visible_equally_often():
    share = visible(GREEN, 8192).mean(0)
    assert share.min() > 0.20 and share.max() < 0.30
    border = np.ones((14, 14), bool)
    border[3:-3, 3:-3] = False
    assert abs(share[border].mean() - share[~border].mean()) < 0.02


def test_power_is_the_same_in_every_direction():
    ranks = make_planes(PlaneRecipe("green", (0.5, 2.0), 5, 16, 256, 0)).astype(float)
    power = (np.abs(np.fft.fft2(ranks - ranks.mean())) ** 2).mean(0)
    y, x = np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256), indexing="ij")
    ring = (np.hypot(y, x) > 0.15) & (np.hypot(y, x) < 0.24)  # green's band; the blur of half a patch is square beyond
    angle = np.abs(np.degrees(np.arctan2(np.abs(y), np.abs(x))))
    parts = [power[ring & part].mean() for part in (angle < 15, np.abs(angle - 45) < 7.5, angle > 75)]
    assert max(parts) / min(parts) < 1.05
    seen = visible(GREEN)
    assert neighbours(seen[:, ::-1]).mean() == neighbours(seen).mean()


@pytest.mark.parametrize("strategy", [WHITE, RED, BLUE, GREEN, PURPLE], ids=lambda s: s.color)
def test_no_mask_comes_twice_in_ten_thousand(strategy):
    masks = np.packbits(visible(strategy, 10_000).reshape(10_000, -1), axis=1)
    chance = 2 if strategy is RED else 0  # one large blob in a corner has few shapes
    assert len({row.tobytes() for row in masks}) >= 10_000 - chance


def test_two_masks_of_a_batch_are_as_different_as_chance_makes_them():
    seen = visible(GREEN, 2048).reshape(2048, -1)
    apart = [(seen[shift:] != seen[:-shift]).mean() for shift in (1, 2, 7, 64, 128)]
    assert apart == pytest.approx([0.375] * 5, abs=0.005)


def test_consecutive_steps_are_not_correlated():
    first, second = (visible(GREEN, 2048, step).reshape(-1).astype(float) for step in (5, 6))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_seeds_differ_and_the_planes_seed_is_its_own():
    assert not np.array_equal(visible(GREEN, 64), visible(GREEN, 64, seed=1))
    assert not np.array_equal(visible(GREEN, 64), visible(dataclasses.replace(GREEN, seed=1), 64))


def test_smallest_and_largest_of_our_noise_look_alike():
    other = neighbours(visible(dataclasses.replace(GREEN, keep="smallest"))).mean()
    assert other == pytest.approx(neighbours(visible(GREEN)).mean(), rel=0.01)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (ColorNoise(sigmas=(1.0,)), "mask.sigmas=1.0 for mask.color=green; it takes two widths"),
        (ColorNoise(sigmas=(2.0, 0.5)), "the smaller first"),
        (ColorNoise(color="white", sigmas=(1.0,)), "it takes none"),
        (ColorNoise(color="red", sigmas=(0.0,)), "one width above 0"),
        (ColorNoise(passes=0), "mask.passes=0; it must be from 1 to 100"),
        (ColorNoise(side=8), "mask.side=8; it must be from 14"),
        (ColorNoise(num_planes=0), "mask.num_planes=0"),
        (ColorNoise(second=-1.0), "mask.second=-1.0"),
        (ColorNoise(file="x.npz", color="red"), "mask.color has no effect on planes from mask.file=x.npz"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_in_words(strategy, words):
    with pytest.raises(ValueError, match=words):
        strategy.check(GRID, 49)
