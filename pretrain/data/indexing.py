"""`lacuna index`: look through every shard of a pattern anew, then write one manifest into each folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.index_file import Excluded
from pretrain.data.locations import expand, is_remote
from pretrain.data.manifest import Listed, Manifest, fingerprint, write_manifest
from pretrain.data.shard_folder import folder_manifest, index_shard, listed, side_folder
from pretrain.data.tar_index import Dedupe, Verify
from pretrain.data.tar_members import BrokenShard
from pretrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class IndexReport:
    """What came of indexing: its text is what a person wants to read."""

    shards: tuple[Listed, ...]
    fingerprint: str  # of these shards in this order
    excluded: tuple[tuple[str, Excluded], ...]  # (shard, sample) left out

    @property
    def num_samples(self) -> int:
        """Usable samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    def __str__(self) -> str:
        lines = [f"{self.num_samples:,} images in {len(self.shards)} shards, fingerprint {self.fingerprint[:16]}"]
        lines += [f"{shard.name}: valid, but holds no sample" for shard in self.shards if not shard.samples]
        if self.excluded:
            lines.append(f"{len(self.excluded)} samples left out:")
            lines += [f"  {shard}: {entry.key}: {entry.reason}" for shard, entry in self.excluded[:20]]
        if len(self.excluded) > 20:
            lines.append(f"  and {len(self.excluded) - 20} more, listed in the .idx files")
        return "\n".join(lines)


def index_shards(
    pattern: str,
    *,
    verify: Verify = "decode",
    dedupe: Dedupe = "refuse",
    on_progress: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Builds the index of every shard anew and updates the manifest of each folder; (done, total) are shards.

    Every shard is looked at before a DataError names all that are damaged; no manifest is written then."""
    names = expand(pattern)
    if any(map(is_remote, names)):
        raise ConfigError(
            "remote shards are indexed where they are written; copy the .idx files and manifest.json along"
        )
    found: dict[str, Listed] = {}
    excluded: list[tuple[str, Excluded]] = []
    broken: list[str] = []
    for done, name in enumerate(names):
        if on_progress:
            on_progress(done, len(names))
        try:
            index = index_shard(name, verify, dedupe)
        except BrokenShard as error:
            broken.append(str(error))
        except OSError as error:
            broken.append(f"{name} cannot be read ({error.strerror})")
        else:
            found[name] = listed(Path(name).name, index)
            excluded += [(name, entry) for entry in index.excluded]
    if on_progress:
        on_progress(len(names), len(names))
    if broken:
        raise DataError(f"{len(broken)} of {len(names)} shards were refused:\n  " + "\n  ".join(broken))
    _write_manifests(found)
    return IndexReport(tuple(found.values()), fingerprint(found.values()), tuple(excluded))


def _write_manifests(found: dict[str, Listed]) -> None:
    """Into each folder, with what was listed there before and is still there."""
    folders: dict[Path, dict[str, Listed]] = defaultdict(dict)
    for name, entry in found.items():
        folders[Path(name).parent][entry.name] = entry
    for folder, entries in folders.items():
        before = _before(folder)
        kept = {shard.name: shard for shard in before.shards if (folder / shard.name).exists()}
        merged = kept | entries
        write_manifest(side_folder(folder), Manifest(tuple(merged[name] for name in sorted(merged)), before.about))


def _before(folder: Path) -> Manifest:
    try:
        return folder_manifest(folder) or Manifest(())
    except DataError:
        return Manifest(())  # damaged: it is what is being repaired
