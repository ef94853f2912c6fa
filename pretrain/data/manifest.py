"""`manifest.json`: the shards of one folder in order, what each must be, and the fingerprint of them all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pretrain import strict_json
from pretrain.errors import DataError

NAME = "manifest.json"
VERSION = 1
BUILDER = "lacuna index 1"


@dataclass(frozen=True)
class Listed:
    """One shard as a manifest lists it."""

    name: str  # file name in the manifest's folder
    bytes: int
    sha256: str
    samples: int
    index_sha256: str  # of what the index says about the samples
    excluded: int = 0  # samples left out when it was indexed


@dataclass(frozen=True)
class Manifest:
    """The shards of a folder by name order, and what `lacuna pack` knows about them."""

    shards: tuple[Listed, ...]
    about: dict[str, Any] = field(default_factory=dict)  # mean, std, classes, ...; not part of the fingerprint

    @property
    def by_name(self) -> dict[str, Listed]:
        """Shard name -> entry."""
        return {shard.name: shard for shard in self.shards}


def fingerprint(shards: Iterable[Listed]) -> str:
    """sha256, as hex, of what the shards hold and in what order: the identity of a data set."""
    content = [[shard.bytes, shard.sha256, shard.samples, shard.index_sha256] for shard in shards]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes manifest.json into the folder, by rename. Equal content gives equal bytes."""
    text = json.dumps(
        {
            "format": "lacuna-manifest",
            "version": VERSION,
            "builder": BUILDER,
            "fingerprint": fingerprint(manifest.shards),
            **manifest.about,
            "shards": [asdict(shard) for shard in manifest.shards],
        },
        indent=1,
    )
    return publish(folder / NAME, text.encode() + b"\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None where it has none. DataError where it contradicts itself."""
    path = folder / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, name: str) -> Manifest | None:
    """A manifest from its bytes; name is what errors name. None for another project's manifest.json."""
    try:
        data = strict_json.loads(content)
        if data.get("format") != "lacuna-manifest":
            return None
        if data["version"] != VERSION:
            raise DataError(f"{name} is of version {data['version']}, not {VERSION}; run `lacuna index` on its shards")
        known = {entry.name for entry in fields(Listed)}
        shards = tuple(Listed(**{key: shard[key] for key in known & shard.keys()}) for shard in data["shards"])
        listed = data["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name} cannot be read ({error!r}); delete it and run `lacuna index` on its shards") from error
    if fingerprint(shards) != listed:
        raise DataError(f"{name} does not have its own fingerprint: it was edited or damaged; run `lacuna index` again")
    for shard in shards:
        if "/" in shard.name or shard.name in ("", ".", ".."):
            raise DataError(f"{name} lists {shard.name!r}, which is no file name; run `lacuna index` again")
    ours = {"format", "version", "builder", "fingerprint", "shards"}
    return Manifest(shards, {key: value for key, value in data.items() if key not in ours})


def publish(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all: beside its place, flushed to the disk, then renamed."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
