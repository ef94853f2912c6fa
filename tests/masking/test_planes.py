"""Planes of noise: made, kept, read back, or taken from a user's file."""

from __future__ import annotations

import dataclasses
import zipfile

import numpy as np
import pytest
import torch

from masking.draw import draw
from masking.mask import Grid
from masking.planes import PlaneRecipe, cached_planes, make_planes, planes_on, read_noise
from masking.ratio import FixedRatio
from masking.strategies.color import ColorNoise

GRID = Grid(14, 14)


def visible(strategy: ColorNoise, num: int) -> np.ndarray:
    """(num, 14, 14) bool."""
    return ~draw(strategy, GRID, torch.arange(num), 0, 0).hidden.reshape(-1, 14, 14).numpy()


def noise_file(path, values, **more):
    np.savez(path, noise=values, **more)
    return str(path)


def test_masks_depend_on_the_order_of_a_noise_files_values_alone(tmp_path):
    values = np.random.default_rng(0).normal(-5, 2, (3, 40, 50))  # windows whose greatest value is negative
    given, bent, turned = (
        visible(ColorNoise(file=noise_file(tmp_path / f"{name}.npz", made), keep=keep), 256)
        for name, made, keep in (
            ("given", values, "largest"), ("bent", np.exp(values / 3) - 7, "largest"), ("turned", -values, "smallest"),
        )
    )  # fmt: skip
    assert np.array_equal(given, bent) and np.array_equal(given, turned)


def test_a_noise_file_of_one_plane_as_large_as_the_grid_gives_its_four_mirrorings(tmp_path):
    plane = np.arange(196.0).reshape(1, 14, 14)
    seen = visible(ColorNoise(file=noise_file(tmp_path / "one.npz", plane), second=0), 64)
    rows = {tuple(mask.any(1).nonzero()[0]) for mask in seen}
    assert rows == {(10, 11, 12, 13), (0, 1, 2, 3)}
    assert len({mask.tobytes() for mask in seen}) == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((40, 40)), r"array \[40, 40\]"),
        (np.full((2, 40, 40), np.nan), "3200 values that are not finite"),
        (np.zeros((2, 40, 40), complex), "complex128"),
        (np.zeros((2, 10, 40)), "at least as large as the grid of 14 x 14"),
        (np.array([{"a": 1}], object), "cannot be read"),
    ],
)
def test_noise_files_that_cannot_be_meant_are_refused_in_words(tmp_path, values, words):
    path = noise_file(tmp_path / "bad.npz", values)
    with pytest.raises(ValueError, match=words) as caught:
        ColorNoise(file=path).check(GRID, 49)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_noise_are_refused_in_words(tmp_path):
    for name, content in (("text.npz", b"hello"), ("cut.npz", b"PK\x03\x04half")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            ColorNoise(file=str(tmp_path / name)).check(GRID, 49)
    np.save(tmp_path / "bare.npy", np.zeros((1, 20, 20)))
    two = noise_file(tmp_path / "two.npz", np.zeros((1, 20, 20)), other=np.zeros(3))
    bare, missing = tmp_path / "bare.npy", tmp_path / "no.npz"
    for path, words in ((bare, "holds 0 named arrays"), (two, "holds 2 named arrays"), (missing, "exist")):
        with pytest.raises(ValueError, match=words):
            ColorNoise(file=str(path)).check(GRID, 49)


RECIPE = PlaneRecipe("green", (0.5, 2.0), 2, 3, 32, 7)


def test_planes_are_read_back_and_made_anew_where_the_file_is_damaged(tmp_path):
    made = cached_planes(RECIPE, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    written = path.stat().st_mtime_ns
    assert np.array_equal(cached_planes(RECIPE, tmp_path), made) and path.stat().st_mtime_ns == written
    assert not np.array_equal(cached_planes(dataclasses.replace(RECIPE, seed=8), tmp_path), made)
    for damaged in (whole[:500], b"", whole[:700] + bytes([whole[700] ^ 1]) + whole[701:]):
        path.write_bytes(damaged)
        assert np.array_equal(cached_planes(RECIPE, tmp_path), made)
        assert path.read_bytes() == whole
    with zipfile.ZipFile(path, "a") as file:  # a checksum that is right for other planes
        assert len(file.namelist()) == 2
    np.savez(path, planes=made[::-1], sha256=np.load(path)["sha256"])
    assert np.array_equal(cached_planes(RECIPE, tmp_path), made)


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert cached_planes(RECIPE, tmp_path / "file" / "noise").shape == (3, 32, 32)


def test_planes_hold_every_rank_once_and_do_not_change_between_versions():
    made = make_planes(RECIPE)
    for plane in made:
        assert np.array_equal(np.sort(plane, axis=None), np.arange(32 * 32))
    assert made[0, 0, :6].tolist() == [227, 942, 355, 52, 304, 458]


def test_planes_take_no_more_memory_than_their_values():
    resident = planes_on(ColorNoise()._source(), torch.device("cpu"))
    assert resident.untyped_storage().nbytes() == 64 * 256 * 256 * 2


def test_equal_values_of_a_file_keep_the_order_of_their_places(tmp_path):
    values = np.random.default_rng(2).integers(0, 9, (2, 40, 40)).astype(np.float16)
    ranks = read_noise(noise_file(tmp_path / "ties.npz", values))
    for plane, found in zip(values.reshape(2, -1), ranks.reshape(2, -1)):
        assert all((np.diff(found[plane == value].astype(int)) > 0).all() for value in range(9))
        assert (np.diff(plane[found.argsort()]) >= 0).all()


def test_a_larger_file_is_ranked_exactly(tmp_path):
    values = np.random.default_rng(1).random((1, 300, 300))
    ranks = read_noise(noise_file(tmp_path / "large.npz", values))
    order = values.reshape(-1).argsort()
    assert np.array_equal(ranks.reshape(-1)[order], np.arange(300 * 300))
    assert ColorNoise(FixedRatio(0.5), file=str(tmp_path / "large.npz")).check(GRID, 98) is None
