"""The members of one tar file, read strictly: a single pass that trusts nothing and stops at the first damage.

webdataset reads tars as a stream, and a damaged header ends the stream without a word: half a shard lost in silence.
So headers are parsed once, here, before any training (ustar, pax and GNU records), and never again at run time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pretrain.errors import DataError

BLOCK = 512
RECORD = 20 * BLOCK  # tar writers pad their file with zeros to a multiple of this
MAX_MEMBER = 256 << 20  # bytes; a larger one is no image
MAX_MEMBERS = 1_000_000
_MAX_RECORD = 1 << 20  # bytes of a pax or GNU record: names and numbers
_ZERO = bytes(BLOCK)
_REGULAR, _FOLDER = (b"0", b"\0", b"7"), b"5"
_OTHERS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class BrokenShard(DataError):
    """A shard that cannot be read to its end without doubt; the text names the shard, the byte and what to do."""

    def __init__(self, path: Path | str, offset: int, what: str, do: str = "fetch or write this shard again") -> None:
        super().__init__(f"{path}: at byte {offset}: {what}; {do}")


@dataclass(frozen=True)
class Member:
    """A regular file of the archive: its name, and where its bytes lie."""

    name: str
    header: int  # byte of its (first) header
    offset: int  # byte of its content
    size: int  # bytes of content


class TarReader:
    """One pass over a tar file: `members()` to the end, then `sha256` of the whole file and its size in bytes."""

    def __init__(self, path: Path, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_MEMBER) -> None:
        """max_members, folders included, of at most max_bytes each; more of either is a BrokenShard."""
        self.path, self._max_members, self._max_bytes = path, max_members, max_bytes
        self.bytes = path.stat().st_size
        self._hash = hashlib.sha256()
        self._at = 0

    @property
    def sha256(self) -> str:
        """Of the whole file, as hex; complete only after the last member."""
        return self._hash.hexdigest()

    def members(self) -> Iterator[tuple[Member, bytes]]:
        """Every regular file with its content, in order. BrokenShard where the archive is damaged."""
        if self.bytes == 0:
            raise self._broken(0, "the file is empty (0 bytes), not even an empty archive")
        with self.path.open("rb", buffering=1 << 20) as file:
            yield from self._walk(file)

    def _walk(self, file: BinaryIO) -> Iterator[tuple[Member, bytes]]:
        records: dict[str, str] = {}  # what pax or GNU records say about the next member
        start, count = None, 0
        while True:
            at = self._at
            block = self._take(file, BLOCK, "cut inside a header")
            if block == _ZERO:
                if records:
                    raise self._broken(at, "the archive ends after a record that announces another member")
                self._finish(file, at)
                return
            self._check(block, at)
            start = at if start is None else start
            kind, size = block[156:157], self._number(block[124:136], at)
            if kind in (b"x", b"g", b"L", b"K"):
                self._record(file, kind, size, at, records)
                continue
            if any(name.startswith("GNU.sparse") for name in records):
                raise self._broken(at, "a sparse member", "pack the shard without sparse files")
            size = int(records.get("size", size))
            name = records.get("path") or _plain_name(block)
            count += 1
            content = self._content(file, name, kind, size, at, count)
            if content is not None:
                yield Member(name, start, self._at - _padded(size), size), content
            records, start = {}, None

    def _content(self, file: BinaryIO, name: str, kind: bytes, size: int, at: int, count: int) -> bytes | None:
        """Bytes of a regular member; None for a folder."""
        if size > self._max_bytes or count > self._max_members:
            limit = f"{self._max_bytes >> 20} MiB a member and {self._max_members} members a shard are the limit"
            raise self._broken(at, f"member {name!r}, number {count}, has {size} bytes", limit)
        if kind == _FOLDER or (kind == b"\0" and name.endswith("/")):
            return None
        if kind not in _REGULAR:
            what = _OTHERS.get(kind, f"of type {kind!r}")
            raise self._broken(at, f"member {name!r} is {what}", "only regular files may be in a shard; pack it again")
        if self._at + size > self.bytes:
            raise self._broken(at, f"cut short: member {name!r} has {size} bytes, {self.bytes - self._at} are left")
        return self._take(file, _padded(size), f"cut short after member {name!r}")[:size]

    def _record(self, file: BinaryIO, kind: bytes, size: int, at: int, records: dict[str, str]) -> None:
        if size > _MAX_RECORD:
            raise self._broken(at, f"a name record of {size} bytes")
        data = self._take(file, _padded(size), "cut inside a name record")[:size]
        if kind == b"L":
            records["path"] = _text(data.rstrip(b"\0"))
        elif kind == b"x":
            records.update(self._pax(data, at))
        elif kind == b"g" and {"path", "size"} & self._pax(data, at).keys():
            raise self._broken(at, "a global record that renames or resizes every member", "pack the shard again")

    def _pax(self, data: bytes, at: int) -> dict[str, str]:
        pairs, rest = {}, data
        while rest.strip(b"\0"):
            digits, space, _ = rest.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
            line, rest = rest[:length], rest[length:]
            key, equals, value = line[len(digits) + 1 : -1].partition(b"=")
            if not (space and equals and line.endswith(b"\n") and len(line) == length):
                raise self._broken(at, "a pax record that cannot be parsed")
            pairs[_text(key)] = _text(value)
        if not re.fullmatch(r"[0-9]{1,20}", pairs.get("size", "0")):
            raise self._broken(at, "a pax record whose size is no number")
        return pairs

    def _finish(self, file: BinaryIO, at: int) -> None:
        """The archive must end here: two zero blocks, padding of less than one record, nothing else."""
        rest = self.bytes - at
        while chunk := file.read(1 << 20):
            self._hash.update(chunk)
            if chunk.strip(b"\0"):
                raise self._broken(at, "a zeroed header, or another archive joined on: data follows the end marker")
        if rest < 2 * BLOCK:
            raise self._broken(at, "cut in the end marker")
        if rest >= 2 * BLOCK + RECORD:
            raise self._broken(at, f"{rest} zero bytes, more than the end of an archive takes: members were lost")

    def _check(self, block: bytes, at: int) -> None:
        stored = block[148:156].strip(b" \0")
        total = sum(block) - sum(block[148:156]) + 8 * 32
        if stored and all(48 <= byte < 56 for byte in stored):
            signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])  # some old writers
            if int(stored, 8) in (total, signed):
                return
        if at == 0:
            raise self._broken(at, _what_it_is(block), "a shard is a plain, uncompressed tar file")
        raise self._broken(at, "a damaged header (its checksum is wrong)")

    def _number(self, field: bytes, at: int) -> int:
        if field[0] == 0x80:  # base 256, how GNU tar writes what octal digits cannot hold
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        if not all(48 <= byte < 56 for byte in digits):
            raise self._broken(at, "a header whose size is no number")
        return int(digits or b"0", 8)

    def _take(self, file: BinaryIO, size: int, otherwise: str) -> bytes:
        if size == BLOCK and self._at == self.bytes:
            raise self._broken(self._at, "cut at a member's border: the two zero blocks of the end are missing")
        data = file.read(size)
        if len(data) != size:
            raise self._broken(self._at, otherwise)
        self._hash.update(data)
        self._at += size
        return data

    def _broken(self, offset: int, what: str, do: str = "fetch or write this shard again") -> BrokenShard:
        return BrokenShard(self.path, offset, what, do)


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _plain_name(block: bytes) -> str:
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    return _text(prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _what_it_is(block: bytes) -> str:
    for magic, name in _MAGIC.items():
        if block.startswith(magic):
            return f"not a tar file but {name} data"
    return "not a tar file but a web page" if block.lstrip()[:1] == b"<" else "not a tar file, or its header is damaged"
