"""What the first bytes of an image say: its format, its size and which way up it is. No pixel is touched and nothing is
allocated, so a decompression bomb is known by its header. The bytes are sniffed; a file's name says nothing."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_MARKER = re.compile(rb"\xff([^\x00\xff])")  # as libjpeg finds the next: fill bytes and stuffed zeros are passed over
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the JPEG start-of-frame markers
_LONE = frozenset(range(0xD0, 0xD8)) | {0x01}  # JPEG markers without a length
_NPY = re.compile(rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9}), (\d{1,9})\), \} *\n")
_REFUSED = ((b"GIF8", "GIF"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"%!PS", "EPS"), (b"<", "HTML"))


class BadImage(ValueError):
    """These bytes will never be a picture we can train on; the text is the reason, without a name."""


@dataclass(frozen=True)
class Header:
    """Format, size as stored (before any turning), and what a decoder wants to know beforehand."""

    format: str  # JPEG, PNG, WEBP or NPY
    width: int
    height: int
    channels: int = 0  # components of a JPEG, last axis of an array; 0 where the decoder will tell
    bits: int = 8  # per channel of a JPEG
    exif: bytes = b""  # the TIFF block of a JPEG; in other formats it may lie behind the pixels
    data_start: int = 0  # where an array's values begin


def image_size(data: bytes) -> tuple[int, int, str]:
    """(width, height, format) as stored, from the header alone; BadImage where there is none."""
    header = read_header(data)
    return header.width, header.height, header.format


def read_header(data: bytes) -> Header:
    """The header of JPEG, PNG, WEBP or NPY bytes; BadImage for everything else and for sizes of zero."""
    try:
        header = _sniff(data)
    except (struct.error, IndexError) as error:
        raise BadImage(f"the header is cut short ({len(data)} bytes in all)") from error
    if header.width < 1 or header.height < 1:
        raise BadImage(f"{header.format} of {header.width}x{header.height} pixels")
    return header


def orientation(exif: bytes) -> int:
    """EXIF orientation 1..8 from a TIFF block, with or without its `Exif` prefix; 1 where malformed or absent."""
    tiff = exif[6:] if exif[:6] == b"Exif\0\0" else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass  # an offset beyond the block: malformed EXIF is common and says nothing about the pixels
    return 1


def _sniff(data: bytes) -> Header:
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:6] == b"\x93NUMPY":
        return _npy(data)
    if not data:
        raise BadImage("no bytes at all")
    name = next((name for magic, name in _REFUSED if data.startswith(magic)), None)
    name = "AVIF or HEIF" if data[4:8] == b"ftyp" else name
    raise BadImage(f"{name} is not read, only JPEG, PNG and WEBP are" if name else "not a JPEG, PNG or WEBP")


def _jpeg(data: bytes) -> Header:
    at, exif = 2, b""
    while found := _MARKER.search(data, at):
        marker, at = data[found.start(1)], found.end()
        if marker in _LONE:
            continue
        if marker in (0xD8, 0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 2)
            return Header("JPEG", width, height, channels, bits, exif)
        if marker == 0xE1 and not exif and data[at + 2 : at + 8] == b"Exif\0\0":
            exif = data[at + 8 : at + length]
        at += max(length, 2)
    raise BadImage("JPEG without a frame header")


def _png(data: bytes) -> Header:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise BadImage("PNG without its IHDR chunk")
    return Header("PNG", width, height)


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return Header("WEBP", 1 + low_w + (high_w << 16), 1 + low_h + (high_h << 16))
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return Header("WEBP", 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise BadImage("WEBP without a frame header")


def _npy(data: bytes) -> Header:
    """Only what numpy.save writes for (H, W, C) uint8 in C order; the text is matched, never evaluated."""
    start = 10 if data[6] == 1 else 12
    found = _NPY.match(data, start)
    if not found:
        raise BadImage("a .npy that is not an (H, W, C) uint8 array in C order")
    height, width, channels = map(int, found.groups())
    return Header("NPY", width, height, channels, data_start=found.end())
