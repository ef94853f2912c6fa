"""`data.train="embedded"`: real photographs with no download, cut from those that ship inside the scikit-image wheel.

Each photograph is one class. A band across its longer side is held out: val crops lie inside it, train crops outside,
and no pixel is in both, so a nearest neighbour of a val crop has to be recognised, not remembered. A crop is stored
larger than it is trained on, and training crops and flips it anew each time. Colour is taken
out and each crop has an exposure and contrast of its own, or its mean colour alone would name seven photographs of ten
and there would be little to learn. Everything follows from the version below.

The photographs and their terms, as scikit-image states them: public domain or no known copyright restrictions:
astronaut (NASA), clock_motion (S. van der Walt), coins (Brooklyn Museum), hubble_deep_field (NASA), ihc (CMMI), rocket
(SpaceX); CC0: brick and gravel (CC0Textures), camera (L. Varshney), cell (P. Mueller et al.), chelsea (S. van der
Walt), coffee (R. Michetti), grass (linolafett), retina (M. Haggstrom). What has no stated terms is not used."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from masking.rng import prf
from pretrain.data.pack import Item, Source, pack
from pretrain.errors import ConfigError

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
NUM_TRAIN, NUM_VAL = 3_080, 504  # crops; 220 and 36 of each photograph
_VERSION = 3  # of the crops
_LONGEST = 720  # pixels; larger photographs are made smaller first, so that a crop shows as much of each
_BAND = (0.5, 0.75)  # the held-out share of the longer side
_LARGER = (1.0, 2.0)  # a crop's side, in sides of the training image
_STORED = 1.25  # a crop's side as it is stored, in sides of the training image
_LIGHT = {"exposure": 0.5, "contrast": 0.4}  # spread of their logarithms


def embedded_shards(cache_dir: Path | str, image_size: tuple[int, int]) -> tuple[str, str]:
    """(train pattern, val pattern) of the packed crops, made in a few seconds when they are not in cache_dir yet.

    image_size: height and width of a training image, pixels. The shards hold JPEG crops, `cls` is the photograph."""
    folder = Path(cache_dir) / f"v{_VERSION}-{image_size[0]}x{image_size[1]}"
    if not (folder / "manifest.json").exists():
        part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        pack(_crops(image_size), part, shard_mb=4, workers=1)
        try:
            part.rename(folder)
        except OSError:  # another process was faster, and its bytes are the same
            shutil.rmtree(part)
            if not (folder / "manifest.json").exists():
                raise
    return str(folder / "train-*.tar"), str(folder / "val-*.tar")


def _crops(image_size: tuple[int, int]) -> Source:
    root = _photographs()
    items = []
    for label, name in enumerate(PHOTOGRAPHS):
        pixels = _load(root / name)
        for split, total in (("train", NUM_TRAIN), ("val", NUM_VAL)):
            for number in range(total // len(PHOTOGRAPHS)):
                at = crop_place(pixels.shape[:2], image_size, label, split, number)
                load = partial(_encode, pixels, at, image_size, light(label, split, number))
                items.append(Item(f"{split}/{Path(name).stem}/{number:04d}.jpg", load, label, split, str(_VERSION)))
    return Source(items, [Path(name).stem for name in PHOTOGRAPHS])


def _photographs() -> Path:
    """The data folder of scikit-image, found without importing it."""
    found = importlib.util.find_spec("skimage")
    root = Path(found.origin).parent / "data" if found and found.origin else None
    if root is None or not all((root / name).exists() for name in PHOTOGRAPHS):
        raise ConfigError(
            "data.train='embedded' uses the photographs inside scikit-image, which is not installed (or lacks them); "
            "run `pip install 'lacuna[demo]'`, or point data.train at shards of your own"
        )
    return root


def _load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        grey = image.convert("RGB").convert("L")
    grey.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BICUBIC)
    return np.array(grey)


def crop_place(
    size: tuple[int, ...], image_size: tuple[int, int], label: int, split: str, number: int
) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of one crop of a photograph of this (height, width)."""
    along = int(size[1] >= size[0])  # the axis of the longer side
    low, high = (round(size[along] * share) for share in _BAND)
    spans = [(low, high)] if split == "val" else [(0, low), (high, size[along])]

    def draw(what: str) -> float:
        return prf(_VERSION, "embedded", label, split, number, what) / 2**63

    place = draw("span") * sum(end - start for start, end in spans)  # the longer span gets more crops
    start, end = spans[0] if place < spans[0][1] - spans[0][0] else spans[-1]
    room = [0, 0]
    room[along], room[1 - along] = end - start, size[1 - along]
    scale = _LARGER[0] + (_LARGER[1] - _LARGER[0]) * draw("scale")
    scale = min(scale, room[0] / image_size[0], room[1] / image_size[1])
    sides = [min(room[axis], max(1, int(image_size[axis] * scale))) for axis in (0, 1)]
    corner = [int(draw(f"corner {axis}") * (room[axis] - sides[axis] + 1)) for axis in (0, 1)]
    corner[along] += start
    return corner[0], corner[1], sides[0], sides[1]


def light(label: int, split: str, number: int) -> np.ndarray:
    """What each grey level of a crop becomes, (256,) uint8: a power for contrast, a gain for exposure."""

    def factor(what: str) -> float:
        uniform = prf(_VERSION, "embedded", label, split, number, what) / 2**63
        return float(np.exp(_LIGHT[what] * (2 * uniform - 1)))

    levels = np.linspace(0, 1, 256) ** factor("contrast") * factor("exposure")
    return np.asarray(np.clip(np.rint(255 * levels), 0, 255).astype(np.uint8))


def _encode(
    pixels: np.ndarray, at: tuple[int, int, int, int], image_size: tuple[int, int], levels: np.ndarray
) -> bytes:
    top, left, height, width = at
    crop = Image.fromarray(levels[pixels[top : top + height, left : left + width]])
    stored = (round(image_size[1] * _STORED), round(image_size[0] * _STORED))
    if width > stored[0]:
        crop = crop.resize(stored, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    crop.save(out, "JPEG", quality=95)
    return out.getvalue()
