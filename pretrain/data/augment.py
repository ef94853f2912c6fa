"""Where a training crop lies, and the cut itself. Everything stays uint8: torch's antialiased bicubic kernel for uint8
gives Pillow's pixels (within 0.1 of 255 on average) in a fifth of its time, and normalising is the model's first layer.

A crop is named by an integer key, `prf(seed, "aug", position, crop)`, and by nothing else: not by worker or rank.
Object boxes and label maps are cut by the same key as their image, so that they are of the same draw."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from masking.rng import prf
from pretrain.data.settings import DataConfig

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
MAX_BOXES = 64  # object boxes of one crop; of more, the largest are kept
_TRIES = 10


def crop_key(seed: int, position: int, crop: int = 0) -> int:
    """The name of the crop-th cut of the image at a position of the endless stream."""
    return prf(seed, "aug", position, crop)


def crop_and_flip(image: np.ndarray, key: int, cfg: DataConfig) -> Tensor:
    """A random resized crop of image (H, W, C) uint8, perhaps mirrored: (C, S_h, S_w) uint8 for cfg.image_size."""
    box, mirrored = draw_crop(image.shape[0], image.shape[1], key, cfg)
    pixels = resize_box(image, box, cfg.image_size)
    return pixels.flip(-1) if mirrored else pixels


def boxes_in_crop(
    boxes: NDArray[np.float64], height: int, width: int, key: int, cfg: DataConfig
) -> NDArray[np.float32]:
    """Object boxes (G, 4) in shares of an image of height x width pixels, in the crop of this key: (at most 64, 4)
    float32, left, top, right, bottom in shares of the crop. What lies outside is cut off, and left out where nothing
    remains; of more than 64 the largest by what remains stay, in the order they were given."""
    (top, left, tall, wide), mirrored = draw_crop(height, width, key, cfg)
    at_px = boxes * np.array([width, height, width, height])
    shares = ((at_px - [left, top, left, top]) / [wide, tall, wide, tall]).clip(0, 1)
    if mirrored:
        shares[:, [0, 2]] = 1 - shares[:, [2, 0]]
    inside = shares.round(6).astype(np.float32)  # or rounding would leave a sliver of a box that ends at the crop
    area = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    largest = np.sort(np.argsort(-area, kind="stable")[:MAX_BOXES])
    return inside[largest[area[largest] > 0]]


def map_in_crop(classes: NDArray[np.uint8], key: int, cfg: DataConfig) -> Tensor:
    """The class of every pixel of the crop of this key, from that of its image (H, W) uint8: (S_h, S_w) uint8."""
    box, mirrored = draw_crop(classes.shape[0], classes.shape[1], key, cfg)
    return resize_map(classes, box, cfg.image_size, mirrored=mirrored)


def draw_crop(height: int, width: int, key: int, cfg: DataConfig) -> tuple[Box, bool]:
    """Which box of an image of height x width pixels the key names, and whether it is mirrored."""
    draws = _uniforms(key)
    mirrored = next(draws) < cfg.flip_prob
    return random_box(height, width, draws, cfg.crop_scale, cfg.crop_aspect), mirrored


def center_crop(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """The largest centred box of the size's shape, resized to it: (C, H, W) uint8, for evaluation."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    tall, wide = (max(1, min(full, round(part * scale))) for full, part in zip((height, width), size, strict=True))
    return resize_box(image, ((height - tall) // 2, (width - wide) // 2, tall, wide), size)


def random_box(
    height: int, width: int, draws: Iterator[float], scale: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """A box of uniform area share and log-uniform aspect (width / height), anywhere inside; the inception crop. Where
    ten draws do not fit, the largest centred box of an allowed aspect."""
    for _ in range(_TRIES):
        area = height * width * _between(scale, next(draws))
        shape = math.exp(_between((math.log(aspect[0]), math.log(aspect[1])), next(draws)))
        wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 1 <= wide <= width and 1 <= tall <= height:
            return int(next(draws) * (height - tall + 1)), int(next(draws) * (width - wide + 1)), tall, wide
    shape = min(max(width / height, aspect[0]), aspect[1])
    wide, tall = max(1, min(width, round(height * shape))), max(1, min(height, round(width / shape)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def resize_box(image: np.ndarray, box: Box, size: tuple[int, int]) -> Tensor:
    """The box of image (H, W, C) uint8, resized to size (height, width): (C, height, width) uint8, contiguous."""
    top, left, tall, wide = box
    pixels = torch.from_numpy(image[top : top + tall, left : left + wide]).permute(2, 0, 1)
    if (tall, wide) == tuple(size):
        return pixels.contiguous()
    return interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0].contiguous()


def resize_map(classes: NDArray[np.uint8], box: Box, size: tuple[int, int], *, mirrored: bool = False) -> Tensor:
    """The box of classes (H, W) uint8 at size (height, width), each pixel that of the nearest one: (height, width)
    uint8. Pixels lie where `resize_box` has them: centre on centre."""
    top, left, tall, wide = box
    rows, columns = (
        start + ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for start, old, new in zip((top, left), (tall, wide), size, strict=True)
    )
    return torch.from_numpy(classes[np.ix_(rows, columns[::-1] if mirrored else columns)])


def _uniforms(key: int) -> Iterator[float]:
    """Numbers in [0, 1), each with the 53 bits a float holds exactly."""
    count = 0
    while True:
        yield (prf(key, count) >> 10) * 2.0**-53
        count += 1


def _between(span: tuple[float, float], share: float) -> float:
    return span[0] + (span[1] - span[0]) * share
