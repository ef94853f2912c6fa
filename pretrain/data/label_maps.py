"""Label maps: the class of every pixel of an image, as a PNG beside it in its sample (`data.maps=seg.png`, say).

A map holds numbers, not colours: 8-bit grey values, or places in a palette, whose colours are for people. It has the
size of the upright image. The bytes are a stranger's: the header is looked at before anything is decoded."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.decode import PILLOW_ERRORS
from pretrain.data.image_header import BadImage, read_header
from pretrain.data.settings import DataConfig
from pretrain.types import VOID

_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}  # colour types of a PNG


class BadMap(ValueError):
    """A sample whose map cannot be meant; the text is the reason, without the sample's name."""


def read_map(content: bytes | None, cfg: DataConfig, num_classes: int, height: int, width: int) -> NDArray[np.uint8]:
    """The class of every pixel of an image of height x width, 0 to num_classes - 1, or 255 for none: (height, width)
    uint8. BadMap where there is no member, no 8-bit PNG of this size, or a number that is no class."""
    if content is None:
        raise BadMap(f"it has no .{cfg.maps} member, and data.maps={cfg.maps} says that its label map is there")
    numbers = read_numbers(content, height, width)
    classes = table_of(cfg, num_classes)
    unknown = np.flatnonzero((np.bincount(numbers.ravel(), minlength=256) > 0) & (classes < 0)).tolist()
    if unknown:
        shown = ", ".join(map(str, unknown[:4])) + (", ..." if len(unknown) > 4 else "")
        none = "" if cfg.map_void is None else f", and data.map_void={cfg.map_void} for none"
        known = f"{cfg.map_first} to {cfg.map_first + num_classes - 1}"
        raise BadMap(f"its label map holds {shown}; objective.pixel_classes={num_classes} allows {known}{none}")
    return classes.astype(np.uint8)[numbers]


def table_of(cfg: DataConfig, num_classes: int) -> NDArray[np.int16]:
    """What each number of a map means: (256,) int16, its class, 255 for none, -1 for a number that must not come."""
    table = np.full(256, -1, np.int16)
    table[cfg.map_first : cfg.map_first + num_classes] = np.arange(num_classes)
    if cfg.map_void is not None:
        table[cfg.map_void] = VOID
    return table


def read_numbers(content: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """A label map as it is written, of an image of height x width: (height, width) uint8. BadMap as `read_map`."""
    try:
        header = read_header(content)
    except BadImage as error:
        raise BadMap(f"its label map: {error}") from error
    if header.format != "PNG" or len(content) < 26:
        raise BadMap(f"its label map is no whole PNG but {header.format} of {len(content)} bytes; write a PNG")
    bits, kind = content[24], _KINDS.get(content[25], "unknown")  # of the IHDR chunk, which read_header found there
    if not (kind == "palette" or (kind == "grey" and bits == 8)):
        raise BadMap(f"its label map is a PNG of {bits}-bit {kind} values; write 8-bit grey ones or a palette's")
    if (header.height, header.width) != (height, width):
        size = f"{header.width}x{header.height} pixels, and its image {width}x{height}"
        raise BadMap(f"its label map has {size} (upright); both must be the same")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            return np.array(image, np.uint8)
    except PILLOW_ERRORS as error:
        raise BadMap(f"its label map: {error}"[:200]) from error
