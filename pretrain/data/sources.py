"""From `data.train` and `data.val` to open shard sets: rank 0 packs or indexes what is missing, the others wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.fetch import Cache
from pretrain.data.locations import is_remote
from pretrain.data.settings import DataConfig
from pretrain.data.shards import BadBytes, ShardSet, open_shards
from pretrain.errors import ConfigError

_FIRST_SHARDS = 8  # looked at for boxes
_LOOKED_AT = 64  # samples of each


@dataclass(frozen=True)
class Sources:
    """The shards a run trains on, and those it is evaluated on."""

    train: ShardSet
    val: ShardSet | None


def open_sources(data: DataConfig, run_dir: Path, is_main: bool, *, barrier: Callable[[], None]) -> Sources:
    """Opens data.train and data.val; what has to be packed or fetched for them is kept beside or in run_dir. Raises
    ConfigError, DataError."""
    if is_main:
        sources = _open(data, run_dir)
        if data.boxes is not None:
            _refuse_without_boxes(sources.train, data)
        if data.maps is not None:
            for shards in filter(None, (sources.train, sources.val)):
                refuse_without_maps(shards, data)
        barrier()
        return sources
    barrier()
    return _open(data, run_dir)


def cache_of(data: DataConfig, run_dir: Path) -> Cache:
    """Where remote shards are kept."""
    folder = Path(data.cache_dir) if data.cache_dir is not None else run_dir / "shard-cache"
    return Cache(folder, max_bytes=int(data.cache_gb * 1e9))


def patterns(data: DataConfig, runs_dir: Path) -> tuple[str, str | None]:
    """The shard patterns behind data.train and data.val; embedded photographs are packed once below runs_dir."""
    if data.train != "embedded":
        return as_pattern(data.train), None if data.val is None else as_pattern(data.val)
    from pretrain.data.embedded import embedded_shards  # needs scikit-image, which few runs do

    train, val = embedded_shards(runs_dir / ".embedded", data.image_size)
    return train, val if data.val is None else as_pattern(data.val)


def as_pattern(text: str) -> str:
    """A folder means every tar in it."""
    return f"{text.rstrip('/')}/*.tar" if Path(text).is_dir() else text


def _open(data: DataConfig, run_dir: Path) -> Sources:
    train, val = patterns(data, run_dir.parent)
    cache = cache_of(data, run_dir)
    return Sources(open_shards(train, cache=cache), None if val is None else open_shards(val, cache=cache))


def _refuse_without_boxes(shards: ShardSet, data: DataConfig) -> None:
    """ConfigError where data.boxes is set and the first shards' samples have none: it could not take effect."""
    first = np.flatnonzero(shards.lengths > 0)[:_FIRST_SHARDS].tolist()
    names = ", ".join(shards.names[shard] for shard in first)
    do = "write them as docs/pack.md says, or set data.boxes=none"
    with_json = [shard for shard in first if "json" in shards.index(shard).extensions]
    if not with_json:
        raise ConfigError(f"data.boxes={data.boxes}, and no sample of {names} has a .json member; {do}")
    if any(is_remote(shards.names[shard]) for shard in with_json):
        return  # it would be fetched for this
    if not any(_names_boxes(shards, shard) for shard in with_json):
        raise ConfigError(f'data.boxes={data.boxes}, and no .json member looked at in {names} has "boxes"; {do}')


def refuse_without_maps(shards: ShardSet, data: DataConfig) -> None:
    """ConfigError where the first shards' samples have no member data.maps: every sample would be a bad one."""
    first = np.flatnonzero(shards.lengths > 0)[:_FIRST_SHARDS].tolist()
    there = {extension for shard in first for extension in shards.index(shard).extensions}
    if data.maps not in there:
        names = ", ".join(shards.names[shard] for shard in first)
        raise ConfigError(
            f"data.maps={data.maps}, and no sample of {names} has a .{data.maps} member (there are "
            f"{', '.join(sorted(there))}); write maps as docs/segment.md says, or give the name that they have"
        )


def _names_boxes(shards: ShardSet, shard: int) -> bool:
    """Whether the json of some of the shard's samples, evenly spaced, has boxes; an empty list counts."""
    length = int(shards.lengths[shard])
    for sample in np.linspace(0, length - 1, min(length, _LOOKED_AT)).astype(int).tolist():
        try:
            if b'"boxes"' in shards.read(shard, sample, ("json",)).get("json", b""):
                return True
        except BadBytes:
            continue  # the run will count it
    return False
