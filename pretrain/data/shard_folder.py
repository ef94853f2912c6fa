"""One folder (or one folder of URLs) of shards: its manifest, its index files, and whether they fit the shards.

An index is written beside its shard, or, where the folder may not be written, under the home directory's cache."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pretrain.data import index_file
from pretrain.data.fetch import Cache
from pretrain.data.index_file import ShardIndex
from pretrain.data.manifest import NAME, Listed, Manifest, parse_manifest, publish, read_manifest
from pretrain.data.tar_index import Dedupe, Verify, build_index, read_index
from pretrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class Shard:
    """One shard of a set: where it is, what it must be, and what the file was when the set was opened."""

    name: str  # path or URL, as the pattern gave it
    listed: Listed
    index: Path
    identity: tuple[int, int, int] | None  # size, mtime in ns, inode; None for a URL


def index_shard(path: Path | str, verify: Verify = "header", dedupe: Dedupe = "refuse") -> ShardIndex:
    """Builds the index of one local tar, writes it, and gives it back. BrokenShard where the tar is damaged."""
    path = Path(path)
    content = build_index(path, verify, dedupe)
    return read_index(content, publish(index_place(path), content))


def listed(name: str, index: ShardIndex) -> Listed:
    """The manifest's line for a shard."""
    return Listed(name, index.bytes, index.sha256, index.num_samples, index.body_sha256, len(index.excluded))


def index_place(shard: Path) -> Path:
    """Where the index of a local shard is, or will be written: the shard's folder if it may be written."""
    beside = shard.with_name(shard.name + index_file.SUFFIX)
    return beside if beside.exists() else side_folder(shard.parent) / beside.name


def side_folder(folder: Path) -> Path:
    """Where index files and manifest of a folder of shards go: itself, or a cache under home if it is read-only."""
    if folder.stat().st_mode & 0o222 and os.access(folder, os.W_OK):
        return folder
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:20]
    place = Path.home() / ".cache" / "lacuna" / "index" / name
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} is read-only and {place} cannot be made ({error}): no place for index files"
        ) from error
    return place


def folder_manifest(folder: Path) -> Manifest | None:
    """The manifest of a local folder of shards, wherever it was written."""
    return read_manifest(folder) or read_manifest(side_folder(folder))


def open_local(
    name: str, known: Listed | None, index_missing: bool, verify: Verify, dedupe: Dedupe
) -> tuple[Shard, bool]:
    """A local shard, and whether its index had to be built. known: what the folder's manifest says of it."""
    path = Path(name)
    try:
        status = path.stat()
    except OSError as error:
        if known is not None:
            raise DataError(
                f"{name} is listed in its folder's manifest but cannot be read ({error.strerror})"
            ) from error
        raise ConfigError(
            f"shard {name!r} cannot be read ({error.strerror}, from {Path.cwd()}); check the path"
        ) from error
    if known is not None and known.bytes != status.st_size:
        raise DataError(_changed(name, f"it has {status.st_size} bytes, its manifest says {known.bytes}"))
    place = index_place(path)
    built = not place.exists()
    if built and not index_missing:
        raise DataError(f"{name} has no index; run `lacuna index` on it")
    if built:
        index = index_shard(path, verify, dedupe)
    elif known is None or status.st_mtime_ns > place.stat().st_mtime_ns:
        index = index_file.load(place)
        _check_unchanged(path, place, index)
    else:
        return Shard(name, known, place, _identity(status)), False
    found = listed(path.name, index)
    if known is not None and known.index_sha256 != found.index_sha256:
        raise DataError(_changed(name, "its index is not the one its manifest lists"))
    return Shard(name, found, place, _identity(status)), built


def open_remote(
    url: str, known: Listed | None, cache: Cache, index_missing: bool, verify: Verify
) -> tuple[Shard, bool]:
    """A shard behind a URL, and whether it was fetched to be indexed; where a manifest lists it, nothing is fetched."""
    place = cache.place(url + index_file.SUFFIX)
    if known is not None:
        return Shard(url, known, place, None), False
    built = not place.exists()
    if built:
        if not index_missing:
            raise DataError(f"{url} has no manifest beside it; index it where it is written with `lacuna index`")
        path = cache.fetch(url)
        publish(place, build_index(path, verify))
    index = index_file.load(place)
    return Shard(url, listed(url, index), place, None), built


def remote_manifest(folder_url: str, cache: Cache) -> Manifest | None:
    """The manifest of a folder of URLs; None where the server has none."""
    content = cache.read(f"{folder_url}/{NAME}")
    return None if content is None else parse_manifest(content, f"{folder_url}/{NAME}")


def load_index(shard: Shard, cache: Cache | None) -> ShardIndex:
    """The index of a shard of an open set. DataError where it is missing, damaged or another one than was opened."""
    if shard.identity is None and not shard.index.exists():
        assert cache is not None
        cache.folder.mkdir(parents=True, exist_ok=True)
        content = cache.read(shard.name + index_file.SUFFIX)
        if content is None:
            publish(shard.index, build_index(cache.fetch(shard.name, shard.listed.sha256)))
        else:
            publish(shard.index, content)
    try:
        index = index_file.load(shard.index)
    except OSError as error:
        raise DataError(
            f"{shard.index} cannot be read ({error.strerror}); run `lacuna index` on {shard.name}"
        ) from error
    if index.body_sha256 != shard.listed.index_sha256:
        raise DataError(_changed(shard.name, "its index is not the one the run was started with"))
    return index


def check_identity(shard: Shard, status: os.stat_result) -> None:
    """DataError unless the file is the one that was there when the set was opened."""
    if shard.identity is not None and shard.identity != _identity(status):
        raise DataError(_changed(shard.name, "its size, time or inode is not what it was when the run started"))


def _check_unchanged(path: Path, place: Path, index: ShardIndex) -> None:
    """The tar must be the one that was indexed. A tar newer than its index is read once more, and compared."""
    status = path.stat()
    if index.bytes != status.st_size:
        raise DataError(_changed(str(path), f"it has {status.st_size} bytes, its index says {index.bytes}"))
    if status.st_mtime_ns > place.stat().st_mtime_ns:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != index.sha256:
            raise DataError(_changed(str(path), "its sha256 is not the one in its index"))
        try:
            os.utime(place)  # so that the next start need not read it again
        except OSError:
            return


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _changed(name: str, how: str) -> str:
    return f"dataset changed: {name}: {how}; put the old file back, or run `lacuna index` on it and start a new run"
