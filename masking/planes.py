"""Planes of coloured noise (Hinojosa, Liu, Ghanem, "ColorMAE", ECCV 2024, section 3), made from a seed, not downloaded.

A plane is white noise on a torus, one value a patch, filtered and ranked several times over. With G_s a Gaussian blur
of standard deviation s patches:

    red     low pass    G_s * W                  green   band pass   G_s1 * W - G_s2 * W,  s1 < s2
    blue    high pass   W - G_s * W              purple  band stop   W - (G_s1 * W - G_s2 * W)

and white is W itself. After each pass every value becomes its rank, so a plane holds each rank once: windows need no
normalising, keeping the smallest is as good as keeping the largest, and ties do not occur.

Blur widths, passes, size and number of planes of the authors are not known to us: their noise is a download. The
defaults are our choice: 5 passes, s = 1 for red and blue, 0.5 and 2 for green and purple (so that green's clusters
repeat every 5 patches or so), 64 planes of 256 x 256. The blur is sampled at whole patches, cut at three standard
deviations, and wraps around, so no place of a plane differs from another."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from masking.rng import prf_array

Color = Literal["red", "blue", "green", "purple", "white"]
SIGMAS: dict[str, tuple[float, ...]] = {
    "red": (1.0,), "blue": (1.0,), "green": (0.5, 2.0), "purple": (0.5, 2.0), "white": (),
}  # fmt: skip
_VERSION = 2  # of the recipe below: planes of another version are made anew


@dataclass(frozen=True)
class PlaneRecipe:
    """Everything planes follow from."""

    color: Color
    sigmas: tuple[float, ...]  # of the blur or blurs, patches
    passes: int  # how often filtering and ranking is done
    num_planes: int
    side: int  # patches
    seed: int


def cache_folder() -> Path:
    """Where planes are kept between runs."""
    return Path("~/.cache/lacuna/noise").expanduser()


def cached_planes(recipe: PlaneRecipe, folder: Path) -> np.ndarray:
    """(num_planes, side, side) uint32 ranks: read from folder where they are there and their checksum is right, else
    made and left there. A folder that cannot be written is no obstacle."""
    name = hashlib.sha256(repr((_VERSION, *astuple(recipe))).encode()).hexdigest()[:16]
    path = folder / f"{recipe.color}-{recipe.num_planes}x{recipe.side}-{name}.npz"
    found = _read(path)
    if found is None:
        found = make_planes(recipe)
        _write(path, found)
    return found


def make_planes(recipe: PlaneRecipe) -> np.ndarray:
    """(num_planes, side, side) uint32: in each plane every rank from 0 to side * side - 1 once."""
    response = transfer(recipe.color, recipe.sigmas, recipe.side)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # numpy lets go of the interpreter's lock
        planes = pool.map(lambda index: _plane(recipe, response, index), range(recipe.num_planes))
        return np.stack(list(planes))


def transfer(color: Color, sigmas: tuple[float, ...], side: int) -> np.ndarray:
    """(side, side // 2 + 1) float64: what one pass does to each frequency of a plane (numpy's rfft2 layout)."""
    blurs = [_blur(sigma, side) for sigma in sigmas]
    if color == "white":
        return np.ones((side, side // 2 + 1))
    passed = blurs[0] if len(blurs) == 1 else blurs[0] - blurs[1]
    return passed if color in ("red", "green") else 1 - passed


@lru_cache(maxsize=1)
def read_noise(path: str) -> np.ndarray:
    """Somebody's own noise, the one array [L, M, N] of an .npz file, as (L, M, N) uint32 ranks in each plane; larger
    stays larger, and equal values keep the order of their places. Raises ValueError for what cannot be used."""
    wanted = "it must be an .npz file with one array [planes, height, width] of finite numbers"
    try:
        with open(path, "rb") as raw:
            file = np.load(raw, allow_pickle=False)
            names = getattr(file, "files", [])
            if len(names) != 1:
                raise ValueError(f"mask.file={path} holds {len(names)} named arrays; {wanted}")
            values = file[names[0]]
    except FileNotFoundError:
        raise ValueError(f"mask.file={path} does not exist; {wanted}") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"mask.file={path} cannot be read ({error}); {wanted}") from error
    except ValueError as error:
        if str(error).startswith("mask.file"):
            raise
        raise ValueError(f"mask.file={path} cannot be read as plain numbers; {wanted}") from error
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "fiu":
        raise ValueError(f"mask.file={path} holds an array {list(values.shape)} of {values.dtype}; {wanted}")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"mask.file={path} holds {count} values that are not finite; {wanted}")
    return np.stack([_ranks(plane.argsort(axis=None, kind="stable")).reshape(plane.shape) for plane in values])


@lru_cache(maxsize=8)
def planes_on(source: PlaneRecipe | str, device: torch.device) -> Tensor:
    """The planes of a recipe, or of a user's file, on device: (L, M, N), ranks less a constant in the smallest integers
    that hold them. Two bytes a value up to 256 x 256: what a cache holds of them decides about speed."""
    ranks = read_noise(source) if isinstance(source, str) else cached_planes(source, cache_folder())
    values = ranks.astype(np.int64) - ranks[0].size // 2
    return torch.from_numpy(values.astype(np.int16 if ranks[0].size <= 1 << 16 else np.int32)).to(device)


def _plane(recipe: PlaneRecipe, response: np.ndarray, index: int) -> np.ndarray:
    side = recipe.side
    white = prf_array(recipe.seed, "plane", index, np.arange(side * side)) >> 31  # of 63 bits
    ranks = _ranks(_sorted_places(white.astype(np.uint32)))
    for _ in range(recipe.passes if recipe.color != "white" else 0):
        spectrum = np.fft.rfft2(ranks.reshape(side, side) / (side * side - 1)) * response
        values = np.fft.irfft2(spectrum, s=(side, side)).reshape(-1)
        low, high = values.min(), values.max()
        ranks = _ranks(_sorted_places(((values - low) * ((2**32 - 1) / (high - low))).astype(np.uint32)))
    return ranks.reshape(side, side)


def _sorted_places(keys: np.ndarray) -> np.ndarray:
    """Where keys (n,) uint32 stand in rising order, equal ones by place: numpy sorts 16 bits by radix, so two passes
    take less than half the time of a sort by comparison."""
    by_low = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    return by_low[np.argsort((keys >> 16).astype(np.uint16)[by_low], kind="stable")]


def _ranks(places: np.ndarray) -> np.ndarray:
    """Each value's rank, (n,) uint32, from where the values stand in rising order."""
    ranks = np.empty(places.size, np.uint32)
    ranks[places] = np.arange(places.size)
    return ranks


def _blur(sigma: float, side: int) -> np.ndarray:
    """What a wrapped Gaussian blur does to each frequency, (side, side // 2 + 1) float64."""
    reach = math.ceil(3 * sigma)
    place = np.arange(-reach, reach + 1)
    weights = np.exp(-(place**2) / (2 * sigma**2))
    along = np.cos(2 * np.pi * np.outer(np.arange(side), place) / side) @ (weights / weights.sum())
    return along[:, None] * along[None, : side // 2 + 1]


def _read(path: Path) -> np.ndarray | None:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            planes, digest = file["planes"], file["sha256"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return planes if bytes(digest) == hashlib.sha256(planes.tobytes()).digest() else None


def _write(path: Path, planes: np.ndarray) -> None:
    digest = np.frombuffer(hashlib.sha256(planes.tobytes()).digest(), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".planes-", delete=False) as file:
            np.savez(file, planes=planes, sha256=digest)
        os.replace(file.name, path)
    except OSError:
        return  # a cache is not worth stopping for
