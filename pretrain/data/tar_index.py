"""Building the index of one tar is validating it: what the index names can be read, and nothing is left out in silence.

Damage to the archive (a bad header, a cut, interleaved or repeated keys) refuses the whole shard, since nobody can say
what is lost. A sample without a usable image is only left out, and listed with its reason. webdataset's rules say what
a sample is: neighbours that share the name up to the first dot of the basename; extensions in lower case."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from isal import isal_zlib

from pretrain.data import index_file
from pretrain.data.index_file import Entry, Excluded, Sample, ShardIndex
from pretrain.data.tar_members import BrokenShard, Member, TarReader

Verify = Literal["header", "decode"]
Dedupe = Literal["refuse", "keep-first"]
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "npy")  # of a sample's images, the first of these is the image
_SPLIT = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__(?:$|/)")  # webdataset's names for what belongs to no sample
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal would act on them
_MAX_NAME = 255  # bytes
_FEW = 8  # samples; with fewer, the last one lacking what all others have proves nothing


def image_extension(extensions: list[str] | tuple[str, ...]) -> str | None:
    """Which of a sample's members is its image; None where it has none."""
    return next((extension for extension in IMAGE_EXTENSIONS if extension in extensions), None)


def build_index(path: Path, verify: Verify = "header", dedupe: Dedupe = "refuse") -> bytes:
    """Content of the index file of a tar. BrokenShard (in one sentence) where it must not be trained on.

    verify="decode" decodes every image once, "header" reads headers; dedupe="keep-first" leaves out repetitions."""
    reader = TarReader(path)
    grouping = _Grouping(path, verify, dedupe)
    for member, content in reader.members():
        grouping.add(member, content)
    samples, excluded = grouping.finish()
    return index_file.build(samples, excluded, bytes=reader.bytes, sha256=reader.sha256, verify=verify)


def read_index(content: bytes, path: Path) -> ShardIndex:
    """The index in bytes that `build_index` gave."""
    return index_file.parse(content, path)


class _Grouping:
    """Members to samples, in one pass."""

    def __init__(self, path: Path, verify: Verify, dedupe: Dedupe) -> None:
        self._path, self._verify, self._dedupe = path, verify, dedupe
        self._seen: dict[str, frozenset[str]] = {}  # the extensions of every finished key
        self._key: str | None = None
        self._start = 0
        self._members: dict[str, Entry] = {}
        self._faults: dict[str, str] = {}  # why an image of the current sample is unusable
        self._label = -1
        self._repeated = False
        self._samples: list[Sample] = []
        self._excluded: list[Excluded] = []

    def add(self, member: Member, content: bytes) -> None:
        """The next member of the archive."""
        self._check_name(member)
        match = _SPLIT.fullmatch(member.name)
        if match is None or _META.match(member.name):
            return  # belongs to no sample, for webdataset too
        key, extension = match[1], match[2].lower()
        if key != self._key:
            self._close()
            self._key, self._start = key, member.header
            self._repeated = key in self._seen
        elif extension in self._members:
            self._refuse_duplicate(member, f"{key}.{extension}")
            return
        self._members[extension] = Entry(extension, member.offset, member.size, isal_zlib.crc32(content))
        if extension in IMAGE_EXTENSIONS and not self._repeated:
            fault = _fault_of(content, self._verify)
            if fault:
                self._faults[extension] = fault
        if extension == "cls":
            self._label = _label(content)

    def finish(self) -> tuple[list[Sample], list[Excluded]]:
        """The samples, and those left out. The last sample must have what all others have: a zeroed end cuts it."""
        last, start = self._key, self._start
        others = list(self._seen.values())
        self._close()
        if last is not None and len(others) >= _FEW:
            lacking = frozenset.intersection(*others) - self._seen[last]
            if lacking:
                what = f"the last sample, {last!r}, lacks {_listed(lacking)}, which all {len(others)} others have"
                raise BrokenShard(self._path, start, what + ": its end is lost or was never written")
        return self._samples, self._excluded

    def _close(self) -> None:
        key, members = self._key, self._members
        if key is None:
            return
        if self._repeated:
            self._close_repeated(key)
        else:
            self._seen[key] = frozenset(members)
            image = image_extension(tuple(members))
            fault = "no image member" if image is None else self._faults.get(image)
            if fault:
                self._excluded.append(Excluded(key, self._start, fault))
            else:
                self._samples.append(Sample(key, self._label, tuple(members.values())))
        self._key, self._members, self._faults, self._label = None, {}, {}, -1

    def _close_repeated(self, key: str) -> None:
        new = set(self._members) - self._seen[key]
        if new:
            what = f"key {key!r} comes again with {_listed(new)} after other samples: its members are interleaved"
            raise BrokenShard(self._path, self._start, what, "write the members of each sample together")
        if self._dedupe == "refuse":
            raise self._duplicate(self._start, key)
        self._excluded.append(Excluded(key, self._start, "duplicate key"))

    def _refuse_duplicate(self, member: Member, name: str) -> None:
        if self._dedupe == "refuse":
            raise self._duplicate(member.header, name)
        if not (self._excluded and self._excluded[-1] == Excluded(name, member.header, "duplicate key")):
            self._excluded.append(Excluded(name, member.header, "duplicate key"))

    def _duplicate(self, offset: int, name: str) -> BrokenShard:
        do = "write the shard again, or keep the first of each with `lacuna index --dedupe keep-first`"
        return BrokenShard(self._path, offset, f"{name!r} comes twice", do)

    def _check_name(self, member: Member) -> None:
        name = member.name
        if name.startswith("/") or ".." in name.split("/") or _UNSAFE.search(name) or len(name.encode()) > _MAX_NAME:
            what = f"member name {name[:80]!r} is not safe (absolute, .., control characters or over {_MAX_NAME} bytes)"
            raise BrokenShard(self._path, member.header, what, "write the shard with plain relative names")


def _fault_of(content: bytes, verify: Verify) -> str | None:
    """Why these bytes are no usable image, or None."""
    from pretrain.data.decode import BadImage, decode, image_size

    try:
        if verify == "header" or content[:6] == b"\x93NUMPY":  # an array is its own pixels
            image_size(content)
        else:
            decode(content)
    except BadImage as error:
        return str(error)
    return None


def _label(content: bytes) -> int:
    text = content.strip()
    return int(text) if re.fullmatch(rb"\d{1,9}", text) else -1


def _listed(extensions: set[str] | frozenset[str]) -> str:
    return ", ".join(f".{extension}" for extension in sorted(extensions))
