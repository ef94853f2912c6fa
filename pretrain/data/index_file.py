"""The sidecar of a shard, `x.tar.idx`: where every sample's bytes lie and what their checksums are.

    magic "LACUNAIX" | version u32 | length of the header u32 | header, JSON | columns, each padded to 8 bytes | sha256

The columns (little-endian) are mapped into memory, never parsed: of each sample its first member, the end of its key
and its label; of each member its offset, size, crc32 and extension; then the keys, joined. The last 32 bytes are the
sha256 of everything before. `body_sha256` covers what the samples are, not how thoroughly they were looked at."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain import strict_json
from pretrain.errors import DataError

VERSION = 1
SUFFIX = ".idx"
_MAGIC = b"LACUNAIX"
_START = struct.Struct("<8sII")
# name, type, number of entries for S samples, M members and K bytes of keys
_COLUMNS = (
    ("first_member", "<u4", "samples", 1),
    ("key_end", "<u4", "samples", 0),
    ("labels", "<i4", "samples", 0),
    ("offset", "<u8", "members", 0),
    ("size", "<u4", "members", 0),
    ("crc32", "<u4", "members", 0),
    ("extension", "<u4", "members", 0),
    ("keys", "u1", "key_bytes", 0),
)


@dataclass(frozen=True)
class Excluded:
    """A sample that was left out when the index was built, and why."""

    key: str
    offset: int  # byte of the sample in the tar
    reason: str


@dataclass(frozen=True)
class Entry:
    """One member of a sample."""

    extension: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Sample:
    """One sample as the index builder found it."""

    key: str
    label: int  # -1 where it has none
    members: tuple[Entry, ...]


class ShardIndex:
    """The index of one shard. Columns are numpy arrays over the mapped file."""

    def __init__(self, header: dict[str, Any], body: Any) -> None:
        self.bytes: int = header["bytes"]  # size of the tar
        self.sha256: str = header["sha256"]  # of the tar
        self.body_sha256: str = header["body_sha256"]
        self.verify: str = header["verify"]  # "header" or "decode": how the images were looked at
        self.num_samples: int = header["samples"]
        self.extensions: tuple[str, ...] = tuple(header["extensions"])
        self.excluded = tuple(Excluded(**entry) for entry in header["excluded"])
        self._columns: dict[str, NDArray[Any]] = {}
        at = 0
        for name, dtype, per, more in _COLUMNS:
            column = np.frombuffer(body, dtype, header[per] + more, at)
            self._columns[name] = column
            at += _padded(column.nbytes)

    def is_sound(self) -> bool:
        """Whether every number in the columns is one that `build` could have written: a stranger's index may be whole
        and say anything."""
        first, ends, keys = (self._columns[name] for name in ("first_member", "key_end", "keys"))
        offset, size = (self._columns[name] for name in ("offset", "size"))
        inside = (offset <= self.bytes) & (size <= self.bytes - np.minimum(offset, self.bytes).astype(np.int64))
        return bool(
            first[0] == 0 and first[-1] == len(offset) and (first[:-1] < first[1:]).all()
            and (ends[:-1] < ends[1:]).all() and (ends[-1] if len(ends) else 0) == len(keys)
            and (self._columns["extension"] < len(self.extensions)).all() and inside.all()
        )  # fmt: skip

    @property
    def labels(self) -> NDArray[np.int32]:
        """(S,) int32, the integer in each sample's .cls member, -1 where there is none."""
        return self._columns["labels"]

    def key(self, sample: int) -> str:
        """The key of a sample."""
        ends = self._columns["key_end"]
        start = int(ends[sample - 1]) if sample else 0
        return self._columns["keys"][start : int(ends[sample])].tobytes().decode(errors="backslashreplace")

    def members(self, sample: int) -> list[Entry]:
        """The members of a sample, as they lie in the tar."""
        columns = self._columns
        first, last = columns["first_member"][sample : sample + 2].tolist()
        picked = (columns[name][first:last].tolist() for name in ("extension", "offset", "size", "crc32"))
        return [Entry(self.extensions[ext], offset, size, crc) for ext, offset, size, crc in zip(*picked)]


def build(samples: Sequence[Sample], excluded: Sequence[Excluded], *, bytes: int, sha256: str, verify: str) -> bytes:
    """The content of an index file."""
    members = [entry for sample in samples for entry in sample.members]
    extensions = sorted({entry.extension for entry in members})
    number = {extension: index for index, extension in enumerate(extensions)}
    keys = [sample.key.encode() for sample in samples]
    columns = {
        "first_member": np.cumsum([0] + [len(sample.members) for sample in samples]),
        "key_end": np.cumsum([len(key) for key in keys]),
        "labels": [sample.label for sample in samples],
        "offset": [entry.offset for entry in members],
        "size": [entry.size for entry in members],
        "crc32": [entry.crc32 for entry in members],
        "extension": [number[entry.extension] for entry in members],
        "keys": np.frombuffer(b"".join(keys), np.uint8),
    }
    body = b"".join(_pad(np.asarray(columns[name], dtype=dtype).tobytes()) for name, dtype, _, _ in _COLUMNS)
    header = {
        "bytes": bytes, "sha256": sha256, "verify": verify, "extensions": extensions,
        "body_sha256": hashlib.sha256(_canonical(extensions) + body).hexdigest(),
        "samples": len(samples), "members": len(members), "key_bytes": sum(map(len, keys)),
        "excluded": [asdict(entry) for entry in excluded],
    }  # fmt: skip
    text = _canonical(header)
    text += b" " * (-(_START.size + len(text)) % 8)
    content = _START.pack(_MAGIC, VERSION, len(text)) + text + body
    return content + hashlib.sha256(content).digest()


def load(path: Path) -> ShardIndex:
    """The index in a file, mapped into memory and checked as a whole. DataError where it is damaged or too new."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:  # cannot be mapped
            raise _damaged(path)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return parse(mapped, path)


def parse(content: Any, path: Path) -> ShardIndex:
    """The index in a buffer; path is what errors name."""
    view = memoryview(content)
    if len(view) < _START.size + 32:
        raise _damaged(path)
    magic, version, length = _START.unpack(view[: _START.size])
    if magic == _MAGIC and version != VERSION:
        raise DataError(f"{path} is an index of version {version}, not {VERSION}; run `lacuna index` again")
    if magic != _MAGIC or hashlib.sha256(view[:-32]).digest() != bytes(view[-32:]):
        raise _damaged(path)
    start = _START.size + length
    try:
        index = ShardIndex(strict_json.loads(bytes(view[_START.size : start])), view[start:-32])
        sound = index.is_sound()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is no index of ours ({error}); delete it and run `lacuna index` again") from error
    if not sound:
        raise DataError(f"{path} points outside of its shard or of itself; delete it and run `lacuna index` again")
    return index


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is damaged (its checksum is wrong); delete it and run `lacuna index` on the shard")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _padded(size: int) -> int:
    return size + -size % 8
