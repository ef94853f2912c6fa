"""Bytes to pixels, by these rules:

- only JPEG, PNG and WEBP, told apart by their bytes; an animation gives its first frame;
- alpha is dropped, as Pillow's convert("RGB") does: the colour stored under it is used;
- 16 bits a channel keep their high byte; palettes and 1-bit images become colours; CMYK is read as Adobe writes it;
- EXIF orientation is applied, unless switched off; malformed EXIF is as good as none;
- `in_chans=1` gives luminance (ITU-R 601-2, the Y of a JPEG); a .npy member holding (H, W, in_chans) uint8 is taken as
  it is, which is the only way to any other number of channels;
- what is too large is refused by its header, before anything is allocated, and so is what has more pixels than its few
  bytes can mean: 42 bytes of WEBP would be 64 million pixels, 3 s and 1.6 GB; what is cut short is refused.

Ordinary JPEGs go through libjpeg-turbo (simplejpeg): the same pixels as Pillow's, 1.5 times as fast. Everything else,
and every JPEG that libjpeg-turbo has a complaint about, goes through Pillow."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pretrain.data.image_header import BadImage, Header, image_size, orientation, read_header

__all__ = ["BadImage", "decode", "image_size"]

_PLAIN_PIXELS = 4_000_000  # up to here nobody asks how few bytes they come from
_PIXELS_PER_BYTE = 200  # a white JPEG has 64, a photograph 1 to 20
_STRIP = 256  # rows handed over from Pillow at a time
PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


def decode(data: bytes, in_chans: int = 3, max_pixels: int = 64_000_000, apply_exif: bool = True) -> np.ndarray:
    """The picture as (H, W, in_chans) uint8, contiguous and writable; BadImage with the reason where there is none."""
    header = read_header(data)
    if header.width * header.height > max_pixels:
        raise BadImage(f"too large: {header.width}x{header.height}, more than {max_pixels} pixels")
    if header.width * header.height > max(_PLAIN_PIXELS, _PIXELS_PER_BYTE * len(data)):
        raise BadImage(f"{header.width}x{header.height} pixels in {len(data)} bytes: a decompression bomb")
    if header.format == "NPY":
        return _array(data, header, in_chans)
    if in_chans not in (1, 3):
        raise BadImage(f"{header.format} holds 1 or 3 channels; in_chans={in_chans} is read from .npy members only")
    pixels, exif = _pixels(data, header, in_chans)
    return _upright(pixels, orientation(exif)) if apply_exif and exif else pixels


def _pixels(data: bytes, header: Header, in_chans: int) -> tuple[np.ndarray, bytes]:
    if header.format == "JPEG" and header.bits == 8 and header.channels in (1, 3):
        try:
            colorspace = "RGB" if in_chans == 3 else "GRAY"
            return simplejpeg.decode_jpeg(data, colorspace, strict=True), header.exif
        except ValueError as error:
            if "Premature end" in str(error):
                raise BadImage("JPEG cut short") from error
    return _by_pillow(data, header, in_chans)


def _by_pillow(data: bytes, header: Header, in_chans: int) -> tuple[np.ndarray, bytes]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes and metadata, both looked after here
            with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
                if image.size != (header.width, header.height):
                    raise BadImage(f"{header.format} with two sizes in its header")
                pixels = _channels(image, in_chans)
                return pixels, image.info.get("exif") or b""
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its text holds an address, and a ledger must repeat to the byte
        raise BadImage(f"{header.format} whose header cannot be read") from error
    except PILLOW_ERRORS as error:
        raise BadImage(f"{header.format}: {error}"[:200]) from error


def _channels(image: Image.Image, in_chans: int) -> np.ndarray:
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int32).clip(0, 65_535)
        high = (wide >> 8).astype(np.uint8)  # convert("L") would clip at 255
        return np.repeat(high[..., None], in_chans, axis=2)
    mode, (width, height) = ("RGB" if in_chans == 3 else "L"), image.size
    pixels = np.empty((height, width, in_chans), np.uint8)
    for top in range(0, height, _STRIP):  # by strips, or a large image would be there four times over
        strip = image.crop((0, top, width, min(top + _STRIP, height))).convert(mode)
        pixels[top : top + _STRIP] = np.asarray(strip).reshape(-1, width, in_chans)
    return pixels


def _array(data: bytes, header: Header, in_chans: int) -> np.ndarray:
    if header.channels != in_chans:
        raise BadImage(f"an array of {header.channels} channels where in_chans={in_chans}")
    size = header.height * header.width * in_chans
    if len(data) - header.data_start != size:
        raise BadImage(f"an array of {size} values in {len(data) - header.data_start} bytes")
    values = np.frombuffer(data, np.uint8, size, header.data_start)
    return values.reshape(header.height, header.width, in_chans).copy()


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels.copy()  # ascontiguousarray would leave a single row that was turned its negative stride
