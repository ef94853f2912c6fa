"""Object boxes in a sample's json, `{"boxes": [[12, 30, 200, 180]]}`: pixels of the image as training sees it, upright.

A box is [left, top, right, bottom] (`data.boxes=xyxy`) or [left, top, width, height] (`xywh`). The text is a
stranger's: its size is limited, it is read strictly, and every number is looked at before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain import strict_json
from pretrain.data.settings import BoxForm

_MAX_JSON = 1 << 20  # bytes
_SLACK = 1.0  # pixels outside the image that are taken for rounding


class BadBoxes(ValueError):
    """A sample whose boxes cannot be meant; the text is the reason, without the sample's name."""


def read_boxes(content: bytes) -> NDArray[np.float64]:
    """The list "boxes" of a sample's json as it is written, (G, 4) float64; G is 0 where the json has none. BadBoxes
    where the json is larger than 1 MiB or no object, or a box is not a list of four finite numbers."""
    if len(content) > _MAX_JSON:
        raise BadBoxes(f"its json has {len(content)} bytes; at most {_MAX_JSON} are read for boxes")
    try:
        about = strict_json.loads(content)
    except ValueError as error:
        raise BadBoxes(f"its json cannot be read ({ascii(str(error))[1:-1][:100]})") from error
    if not isinstance(about, dict):
        raise BadBoxes('its json is no object; write {"boxes": [[...], ...]}')
    boxes = about.get("boxes")
    if boxes is None:
        boxes = []
    if not isinstance(boxes, list):
        raise BadBoxes(f'"boxes" in its json is {ascii(boxes)[:60]}, not a list of boxes')
    return np.array([_numbers(number, box) for number, box in enumerate(boxes, 1)], np.float64).reshape(-1, 4)


def box_shares(boxes: NDArray[np.float64], form: BoxForm, height: int, width: int) -> NDArray[np.float64]:
    """Boxes (G, 4) of this form in pixels of an image, as shares of its width and height: (G, 4) float64, left, top,
    right, bottom in 0..1. BadBoxes for one without area or more than a pixel outside; less than that is cut off."""
    shares = []
    for number, box in enumerate(boxes.tolist(), 1):
        left, top, right, bottom = box if form == "xyxy" else (box[0], box[1], box[0] + box[2], box[1] + box[3])
        if not (right > left and bottom > top):
            raise BadBoxes(f"box {number} of its json, {_shown(box)}, has no area; data.boxes={form}")
        if min(left, top) < -_SLACK or right > width + _SLACK or bottom > height + _SLACK:
            size = f"the image of {width}x{height} pixels"
            raise BadBoxes(f"box {number} of its json, {_shown(box)}, reaches outside {size}; data.boxes={form}")
        shares.append((left / width, top / height, right / width, bottom / height))
    return np.array(shares, np.float64).reshape(-1, 4).clip(0, 1)


def _numbers(number: int, box: Any) -> list[float]:
    if isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box):
        try:
            values = [float(value) for value in box]
        except OverflowError:
            values = [math.inf]
        if all(map(math.isfinite, values)):
            return values
    raise BadBoxes(f"box {number} of its json, {ascii(box)[:80]}, is not a list of four finite numbers")


def _shown(box: Iterable[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"
