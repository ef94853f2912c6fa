"""Damaged images: case n is always the same bytes. Run as a program it decodes many of them and says after each how
far it is, so that whoever started it knows which one killed it. It imports little: its memory is the decoder's."""

from __future__ import annotations

import ctypes
import io
import json
import os
import random
import struct
import sys
import time
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain.data.decode import BadImage, decode

KINDS = ("bits", "byte", "junk", "cut", "zeroed", "size", "garbage", "spliced")
SLOW_S = 1.0
PLANTED = {7: "crash", 9: "escape", 11: "address"}  # what a test of the campaign puts in place of these cases


@cache
def sources() -> list[bytes]:
    """Whole images of every kind that is read, large and small."""
    rng = np.random.default_rng(7)
    photo = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((61, 47), 3)
    large = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).resize((300, 400), 3)
    wide = Image.fromarray(np.arange(47 * 61, dtype=np.uint16).reshape(47, 61) * 22)
    exif = Image.Exif()
    exif[0x0112] = 6
    array = io.BytesIO()
    np.save(array, np.asarray(photo), allow_pickle=False)
    jpegs = [_encoded(photo, "JPEG", exif=exif), _encoded(photo.convert("L"), "JPEG"), _encoded(large, "JPEG")]
    jpegs += [_encoded(photo, "JPEG", progressive=True), _encoded(photo.convert("CMYK"), "JPEG")]
    pngs = [_encoded(photo.convert(mode), "PNG") for mode in ("RGB", "P", "1", "LA", "RGBA")]
    webps = [_encoded(photo, "WEBP"), _encoded(large, "WEBP", lossless=True)]
    webps += [_encoded(photo.convert("RGBA"), "WEBP", exif=exif)]
    webps += [_encoded(photo, "WEBP", save_all=True, append_images=[photo.rotate(90)])]
    return jpegs + pngs + [_encoded(wide, "PNG")] + webps + [array.getvalue()]


def damaged(case: int) -> bytes:
    """The bytes of case."""
    rng = random.Random(f"image {case}")
    data, kind = bytearray(rng.choice(sources())), rng.choice(KINDS)
    at = rng.randrange(len(data))
    if kind == "bits":
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[rng.randrange(min(400, len(data)))] = rng.randrange(256)
    elif kind == "junk":
        data[at : at + rng.randrange(30)] = rng.randbytes(rng.randrange(30))
    elif kind == "cut":
        del data[at:]
    elif kind == "zeroed":
        at -= at % 64
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif kind == "size":
        _claim(data, rng.choice([0, 1, 3000, 8000, 16_383, 65_535]), rng.choice([1, 47, 8000, 65_535]))
    elif kind == "garbage":
        data[rng.choice([4, 12, 30]) :] = rng.randbytes(rng.randrange(2000))
    else:
        other = rng.choice(sources())
        data[at:] = other[rng.randrange(len(other)) :]
    return bytes(data)


def _claim(data: bytearray, width: int, height: int) -> None:
    """Writes another size into a header, with the checksum that goes with it."""
    if data[:4] == b"\x89PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif data[:2] == b"\xff\xd8":
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif data[12:16] == b"VP8X":
        data[24:30] = struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
    else:
        data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# What follows runs in the process that may crash.


def _decode_all(first: int, end: int, progress: str, planted: str) -> None:
    said: dict[str, Any] = {"decoded": 0, "refused": 0, "worst_cpu_s": 0.0, "worst_rss_mb": 0, "failures": []}
    warnings.simplefilter("error")  # the decoder silences those of sizes and metadata; any other would flood a log
    with open(progress, "r+b", buffering=0) as file:
        for case in range(first, end):
            _tell(file.fileno(), said | {"case": case})
            data, began = damaged(case), time.process_time()
            outcome = _outcome(data, 1 + 2 * (case % 2), PLANTED.get(case, "") if planted else "")
            took = round(time.process_time() - began, 3)
            said["worst_cpu_s"] = max(said["worst_cpu_s"], took)
            said["decoded" if outcome is None else "refused"] += 1
            problem = f"{took} s" if took >= SLOW_S else outcome
            if problem and problem != "refused":
                said["failures"].append(f"case {case}: {problem}")
        lines = Path("/proc/self/status").read_text().splitlines()
        said["worst_rss_mb"] = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
        _tell(file.fileno(), said | {"case": end - 1})


def _outcome(data: bytes, in_chans: int, planted: str) -> str | None:
    """None for pixels, "refused" for the decoder's own refusal, else what is wrong."""
    try:
        _plant(planted)
        pixels = decode(data, in_chans)
    except BadImage as error:
        return f"a ledger that does not repeat: {error}" if "at 0x" in str(error) else "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    fine = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.flags.c_contiguous and min(pixels.strides) > 0
    return None if fine and pixels.shape[2] == in_chans else f"pixels of {pixels.dtype} {pixels.shape}"


def _plant(fault: str) -> None:
    if fault == "crash":
        ctypes.string_at(0)
    elif fault == "escape":
        raise KeyError("planted")
    elif fault == "address":
        raise BadImage("<x at 0x7f>")


def _tell(fd: int, said: dict[str, Any]) -> None:
    os.pwrite(fd, json.dumps(said).encode().ljust(4096), 0)  # it only grows, so nothing of an earlier one stays


if __name__ == "__main__":
    _decode_all(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
