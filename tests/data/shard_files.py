"""Small shards for the tests of this folder: written with tarfile, so that every detail can be chosen."""

import io
import random
import tarfile

import numpy as np
from PIL import Image


def jpeg(seed: int, size: tuple[int, int] = (20, 24), kind: str = "JPEG") -> bytes:
    pixels = np.frombuffer(random.Random(seed).randbytes(size[0] * size[1] * 3), np.uint8).reshape(*size, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def samples(number: int, first: int = 0) -> list[tuple[str, bytes]]:
    """(name, content) of number samples with a label and a JPEG each."""
    made = []
    for index in range(first, first + number):
        made += [(f"{index:05d}.cls", str(index % 10).encode()), (f"{index:05d}.jpg", jpeg(index))]
    return made


def write(path, members, form=tarfile.USTAR_FORMAT):
    """A tar of (name, content) or ready TarInfo members."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path
