"""One image on its way into a shard: decoded once, made smaller if asked, measured for mean and std."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pretrain.data.augment import resize_map
from pretrain.data.boxes import BadBoxes, read_boxes
from pretrain.data.decode import BadImage, decode, image_size
from pretrain.data.label_maps import BadMap, read_numbers
from pretrain.data.pack_sources import Item
from pretrain.data.shards import BadBytes
from pretrain.errors import DataError

_EXTENSION = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "NPY": "npy"}
MAP = "seg.png"  # member that holds a label map
_LOOKED_AT = 64  # pixels a side, at most, that count for mean and std


@dataclass(frozen=True)
class Encoding:
    """What is done to the pixels."""

    size_px: int | None = None  # short side; None keeps the original bytes
    quality: int = 90  # of the JPEG
    full_chroma: bool = False  # 4:4:4 in place of 4:2:0


@dataclass(frozen=True)
class Packed:
    """Members of one sample by extension, or the reason why there is none; sums over its pixels."""

    members: dict[str, bytes]
    sums: list[list[int]]
    rejected: str | None = None


def prepare(item: Item, encoding: Encoding) -> Packed:
    """The sample of an image. What cannot be decoded is rejected with its reason; a failing disk is a DataError."""
    try:
        data = item.load()
        width, height, kind = image_size(data)
        about = {"name": item.name, "width": width, "height": height}
        scale = (1.0, 1.0)
        sums: list[list[int]] = []
        if kind == "NPY":  # an array is its own pixels
            pixels = np.empty((height, width, 0), np.uint8)
        else:
            pixels = decode(data)
            sums = _sums(pixels)
            if encoding.size_px is not None and min(pixels.shape[:2]) > encoding.size_px:
                (data, scale), kind = _smaller(pixels, encoding), "JPEG"
        about |= _boxes(item, scale)
        maps = {} if item.load_map is None else {MAP: _map(item.load_map(), data, pixels.shape[:2])}
    except (BadImage, BadBoxes, BadMap, BadBytes) as error:
        return Packed({}, [], str(error))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        return Packed({}, [], f"cannot be read: {error.strerror}")
    except OSError as error:
        raise DataError(f"{item.name} cannot be read ({error}); run the same command again to go on") from error
    members = {_EXTENSION[kind]: data, **maps, "json": json.dumps(about, sort_keys=True).encode()}
    if item.label is not None:
        members["cls"] = str(item.label).encode()
    return Packed(members, sums)


def _map(content: bytes, data: bytes, size: tuple[int, ...]) -> bytes:
    """A label map of an image of this (height, width): as it is, or, where the image became smaller, each pixel that of
    the nearest one. BadMap where it is none."""
    numbers = read_numbers(content, size[0], size[1])
    width, height, _ = image_size(data)
    if width * height >= numbers.size:  # as large as it was, be it turned by its EXIF
        return content
    out = io.BytesIO()
    Image.fromarray(resize_map(numbers, (0, 0, *size), (height, width)).numpy()).save(out, "PNG")  # type: ignore[arg-type]
    return out.getvalue()


def _boxes(item: Item, scale: tuple[float, float]) -> dict[str, object]:
    """The list "boxes" of the json an image comes with, in pixels of the image as it is packed. Scaling both pairs of
    numbers is right for corners as for a corner with width and height, so it need not be known which they are."""
    content = b"" if item.load_json is None else item.load_json()
    if b'"boxes"' not in content:
        return {}
    boxes = read_boxes(content)
    if scale == (1.0, 1.0):
        return {"boxes": boxes.tolist()}
    scaled = (boxes * (scale * 2)).tolist()
    return {"boxes": [[float(f"{value:.6g}") for value in box] for box in scaled]}


def _smaller(pixels: np.ndarray, encoding: Encoding) -> tuple[bytes, tuple[float, float]]:
    """The image as a JPEG of the wanted short side, and what its width and height were multiplied by."""
    assert encoding.size_px is not None
    height, width = pixels.shape[:2]
    scale = encoding.size_px / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    out = io.BytesIO()
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image.save(out, "JPEG", quality=encoding.quality, subsampling=0 if encoding.full_chroma else 2)
    return out.getvalue(), (size[0] / width, size[1] / height)


def _sums(pixels: np.ndarray) -> list[list[int]]:
    """Number, sum and sum of squares of each channel over a coarse grid: whole numbers, so any order gives the same."""
    step = (np.array(pixels.shape[:2]) - 1) // _LOOKED_AT + 1
    seen = pixels[:: step[0], :: step[1]].reshape(-1, pixels.shape[2]).astype(np.int64)
    return [[len(seen), int(total), int(square)] for total, square in zip(seen.sum(0), (seen**2).sum(0))]
