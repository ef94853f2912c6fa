"""Reads W&B's transaction log (run-ID.wandb) back: what has truly reached the disk, whatever was killed and when.

The file is a 7-byte header and then LevelDB log framing: 32 KiB blocks of fragments (crc32, length, type), which join
to protocol buffers. A torn end is where reading stops.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = 7  # of the file, and of every fragment
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: str | Path) -> Iterator[Any]:
    """The wandb_internal_pb2.Record messages of a .wandb file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import

    for payload in _payloads(Path(path).read_bytes()):
        record = Record()
        record.ParseFromString(payload)
        yield record


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a .wandb file as {name: value}; nested names are joined by dots."""
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return rows


def _payloads(data: bytes) -> Iterator[bytes]:
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        room = _BLOCK - at % _BLOCK
        if room < _HEADER:  # the rest of a block is padding
            at += room
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        body = data[at + _HEADER : at + _HEADER + length]
        if not _FULL <= kind <= _LAST or len(body) < length or zlib.crc32(bytes([kind]) + body) != crc:
            return
        at += _HEADER + length
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            yield parts
