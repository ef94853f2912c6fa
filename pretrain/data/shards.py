"""Tar shards as one addressable set: (shard, sample) -> the bytes of its members, by one read at a known offset.

Opening a set finds its shards, their manifest and their index files, builds what is missing, and refuses what does not
fit. Reading never parses a tar header: offsets, sizes and checksums come from the index, and every member's crc32 is
compared each time. Bytes that are wrong for good raise BadBytes (the slot is kept and counted); a disk or server that
stumbles is tried again, then DataError ends the attempt: nothing is skipped for a reason that may pass."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from pretrain.data.fetch import Cache
from pretrain.data.index_file import Entry, ShardIndex
from pretrain.data.locations import expand, is_remote, matches
from pretrain.data.manifest import Listed, fingerprint, write_manifest
from pretrain.data.retry import retry
from pretrain.data.shard_folder import (
    Shard,
    check_identity,
    folder_manifest,
    index_shard,
    load_index,
    open_local,
    open_remote,
    remote_manifest,
)
from pretrain.data.tar_index import IMAGE_EXTENSIONS, Dedupe, Verify, image_extension
from pretrain.data.tar_members import BrokenShard
from pretrain.errors import ConfigError, DataError

__all__ = [
    "IMAGE_EXTENSIONS", "BadBytes", "BrokenShard", "ShardSet", "image_extension", "index_shard", "open_shards",
    "write_manifest",
]  # fmt: skip
OnProgress = Callable[[int, int], None]  # (done, of how many)
MAX_SAMPLE = 256 << 20  # bytes of one read: a sample's members, and what lies between them
_MAX_OPEN = 512  # files and mapped indexes a process keeps


class BadBytes(ValueError):
    """A member's bytes are not what the index says, and never will be; the text is the reason."""


def open_shards(
    pattern: str,
    *,
    index_missing: bool = True,
    on_progress: OnProgress | None = None,
    verify: Verify = "header",
    dedupe: Dedupe = "refuse",
    cache: Cache | None = None,
) -> ShardSet:
    """The shards a pattern names, ready to be read. ConfigError or DataError says in a sentence what is wrong.

    index_missing: build indexes that are not there (verify, dedupe: how), else they are refused. on_progress(done,
    total) is called for every shard. cache: where https: shards are kept; without one they are refused."""
    names = expand(pattern, allow_http=cache is not None and cache.allow_http)
    manifests = _manifests(names, cache)
    _refuse_missing(pattern, names, manifests)
    shards: list[Shard] = []
    for done, name in enumerate(names):
        if on_progress:
            on_progress(done, len(names))
        folder, _, file = name.rpartition("/")
        known = manifests[folder].get(file)
        if is_remote(name):
            assert cache is not None
            shard, _ = open_remote(name, known, cache, index_missing, verify)
        else:
            shard, _ = open_local(name, known, index_missing, verify, dedupe)
        shards.append(shard)
    if on_progress:
        on_progress(len(names), len(names))
    if not any(shard.listed.samples for shard in shards):
        raise DataError(f"the {len(shards)} shards of {pattern!r} hold no usable sample at all")
    return ShardSet(shards, cache)


class ShardSet:
    """An ordered set of shards. It can be pickled: every process opens its own files, a bounded number of them."""

    def __init__(self, shards: Sequence[Shard], cache: Cache | None = None) -> None:
        self._shards = tuple(shards)
        self._cache = cache
        self.names = [shard.name for shard in shards]
        self.lengths: NDArray[np.int64] = np.array([shard.listed.samples for shard in shards], dtype=np.int64)
        self.num_samples = int(self.lengths.sum())
        self.num_excluded = sum(shard.listed.excluded for shard in shards)  # left out by their indexes
        self.fingerprint = fingerprint(shard.listed for shard in shards)
        self.digests = [int(shard.listed.sha256[:16], 16) for shard in shards]  # 64 bits each, for the step digest
        folders = [name.rpartition("/")[0] or "." for name in self.names]
        self.root = os.path.commonpath(folders) if not any(map(is_remote, self.names)) else folders[0]
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self._shards, "cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["shards"], state["cache"])  # type: ignore[misc]

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def read(self, shard: int, sample: int, extensions: Collection[str] | None = None) -> dict[str, Any]:
        """One sample: "__key__", "__url__", and the bytes of each member by its extension (of those asked for, or all).

        BadBytes where a checksum fails for good; DataError where the shard is gone, changed, or cannot be read."""
        index = self.index(shard)
        members = [m for m in index.members(sample) if extensions is None or m.extension in extensions]
        found: dict[str, Any] = {"__key__": index.key(sample), "__url__": self.names[shard]}
        content = self._members(shard, members)
        if content is None:  # what one read gave may be a stumble of the network; the same again is not
            self._close(shard)
            content = self._members(shard, members)
        if content is None:
            raise BadBytes(f"the checksum of {', '.join('.' + m.extension for m in members)} is not the index's")
        return found | content

    def key(self, shard: int, sample: int) -> str:
        """The key of one sample."""
        return self.index(shard).key(sample)

    def labels(self, shard: int) -> NDArray[np.int32]:
        """(n,) int32, the integer class of every sample of a shard, -1 where it has none."""
        return self.index(shard).labels

    def index(self, shard: int) -> ShardIndex:
        """The index of one shard, mapped into memory."""
        index = self._indexes.get(shard)
        if index is None:
            index = self._indexes[shard] = load_index(self._shards[shard], self._cache)
            if len(self._indexes) > _MAX_OPEN:
                self._indexes.popitem(last=False)
        else:
            self._indexes.move_to_end(shard)
        return index

    def notes(self) -> list[str]:
        """What a person should know before training on this set, in sentences; most sets give none."""
        notes = []
        empty = int((self.lengths == 0).sum())
        if empty:
            notes.append(f"{empty} of {len(self.names)} shards are valid but hold no sample")
        if self.num_excluded:
            notes.append(
                f"{self.num_excluded} unusable samples were left out by the indexes, beside {self.num_samples}"
            )
        if self._looks_sorted():
            notes.append("the samples are sorted by class; the order of training mixes them, plain webdataset does not")
        return notes

    def _looks_sorted(self) -> bool:
        """Whether neighbours share their class far more often than chance would have it, in up to 16 shards."""
        filled = np.flatnonzero(self.lengths > 0)
        picked = filled[np.linspace(0, len(filled) - 1, min(16, len(filled))).astype(int)]
        parts = [self.labels(int(shard))[:4096] for shard in picked]
        every = np.concatenate(parts)
        if len(every) < 64 or (every < 0).any():
            return False
        same = sum(int((part[1:] == part[:-1]).sum()) for part in parts) / max(1, sum(len(part) - 1 for part in parts))
        by_chance = float(((np.unique(every, return_counts=True)[1] / len(every)) ** 2).sum())
        return by_chance < 0.8 and same > (1 + by_chance) / 2

    def _members(self, shard: int, members: list[Entry]) -> dict[str, bytes] | None:
        """Bytes of the members by extension, by one read; None where a checksum is wrong."""
        if not members:
            return {}
        start = min(member.offset for member in members)
        size = max(member.offset + member.size for member in members) - start
        if size > MAX_SAMPLE:
            raise BadBytes(f"its members span {size} bytes; at most {MAX_SAMPLE} are read of a sample")
        data = retry(lambda: self._pread(shard, size, start), self.names[shard])
        found = {m.extension: data[m.offset - start : m.offset - start + m.size] for m in members}
        if any(isal_zlib.crc32(found[m.extension]) != m.crc32 for m in members):
            return None
        return found

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        try:
            file = self._file(shard)
            data = os.pread(file, size, offset)
            while len(data) < size:
                more = os.pread(file, size - len(data), offset + len(data))
                if not more:
                    check_identity(self._shards[shard], os.fstat(file))
                    raise OSError(f"{size - len(data)} bytes at {offset + len(data)} are missing")
                data += more
            return data
        except OSError:
            self._close(shard)  # a stale handle is not tried again
            raise

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            entry = self._shards[shard]
            path = Path(entry.name)
            if entry.identity is None:
                assert self._cache is not None
                path = self._cache.fetch(entry.name, entry.listed.sha256)
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files[shard] = file
            check_identity(entry, os.fstat(file))
            if len(self._files) > self._max_files:
                os.close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(shard)
        return file

    def _close(self, shard: int) -> None:
        file = self._files.pop(shard, None)
        if file is not None:
            os.close(file)

    def _forget(self) -> None:
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_files = _MAX_OPEN if allowed == resource.RLIM_INFINITY else max(1, min(_MAX_OPEN, allowed // 4))


def _manifests(names: list[str], cache: Cache | None) -> dict[str, dict[str, Listed]]:
    """Of every folder that holds some of the shards, what its manifest lists, by file name."""
    manifests: dict[str, dict[str, Listed]] = {}
    for name in names:
        folder = name.rpartition("/")[0]
        if folder in manifests:
            continue
        if is_remote(name):
            if cache is None:
                raise ConfigError(f"{name} needs a place to be kept; set data.cache_dir")
            manifest = remote_manifest(folder, cache)
        else:
            place = Path(name).parent
            manifest = folder_manifest(place) if place.is_dir() else None
        manifests[folder] = manifest.by_name if manifest else {}
    return manifests


def _refuse_missing(pattern: str, names: list[str], manifests: dict[str, dict[str, Listed]]) -> None:
    """A glob does not see what is gone; the manifest does."""
    given = set(names)
    for folder, entries in manifests.items():
        for file in entries:
            name = f"{folder}/{file}" if folder else file
            if name not in given and not is_remote(name) and matches(pattern, name) and not Path(name).exists():
                raise DataError(
                    f"{name} is in its folder's manifest but is gone; put it back, or run `lacuna index` on the others"
                )
