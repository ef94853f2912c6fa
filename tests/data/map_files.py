"""Shards of pictures with label maps for tests: the colour of a pixel says its class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.shard_files import write

COLOURS = np.array([(220, 40, 40), (40, 200, 60), (50, 70, 220)], np.uint8)  # far apart, also behind a JPEG
VOID_COLOUR = np.array([128, 128, 128], np.uint8)


def scene(number: int, size: tuple[int, int] = (40, 56), void: bool = False) -> np.ndarray:
    """(H, W) uint8, classes 0 to 2 in coarse blocks, and 255 in a corner."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 3, (4, 4), dtype=np.uint8)
    classes = np.kron(coarse, np.ones((-(-size[0] // 4), -(-size[1] // 4)), np.uint8))[: size[0], : size[1]]
    if void:
        classes[: size[0] // 4, : size[1] // 4] = 255
    return classes


def picture(classes: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: each class in its colour."""
    pixels = np.broadcast_to(VOID_COLOUR, (*classes.shape, 3)).copy()
    for number, colour in enumerate(COLOURS):
        pixels[classes == number] = colour
    return pixels


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    """values as a PNG."""
    out = io.BytesIO()
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(out, "PNG")
    return out.getvalue()


def members(number: int, label_map: bytes | None = None, size: tuple[int, int] = (40, 56)) -> list[tuple[str, bytes]]:
    """Picture and map of one sample; label_map in the place of the true one, none where it is empty."""
    classes = scene(number, size, void=True)
    content = png(classes) if label_map is None else label_map
    maps = [(f"{number:05d}.seg.png", content)] if content else []
    return [(f"{number:05d}.png", png(picture(classes))), *maps]


def write_scenes(folder: Path, number: int, per_shard: int = 16, first: int = 0) -> str:
    """So many samples in shards; their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(first, first + number, per_shard):
        numbers = range(start, min(start + per_shard, first + number))
        write(folder / f"scenes-{start:05d}.tar", [member for one in numbers for member in members(one)])
    return f"{folder}/*.tar"
