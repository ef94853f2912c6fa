"""`lacuna pack`: images to webdataset shards with an index beside each, and one manifest.

The order of writing is shuffled by the seed, so that neighbours are strangers even to a reader that only streams.
Every image is decoded once: what cannot be is listed in rejected.csv and left out. A shard appears by rename when it is
whole; killed at any moment and run again, the same command gives the bytes of a pack that was never interrupted."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from masking.rng import prf, prf_array
from pretrain.data.manifest import Listed, Manifest, publish, write_manifest
from pretrain.data.pack_image import Encoding, Packed, prepare
from pretrain.data.pack_journal import Finished, Journal
from pretrain.data.pack_sources import Item, Source, find_images, with_maps
from pretrain.data.tar_index import build_index, read_index
from pretrain.errors import ConfigError

__all__ = ["Item", "PackReport", "Source", "pack"]
_VERSION = 2  # of what is written for the same source and settings
_PART = ".part"


@dataclass(frozen=True)
class PackReport:
    """What a pack holds; its text is what a person wants to read."""

    folder: Path
    samples: dict[str, int]  # by split
    shards: dict[str, list[str]]  # file names by split
    rejected: int
    bytes: int
    mean: tuple[float, ...]  # of the train split, per channel, values in 0..1
    std: tuple[float, ...]
    classes: list[str]

    def pattern(self, split: str = "train") -> str:
        """What data.train or data.val is to be set to."""
        return str(self.folder / f"{split}-*.tar")

    def __str__(self) -> str:
        lines = []
        for split, names in self.shards.items():
            lines.append(f"{split}: {self.samples[split]:,} images in {len(names)} shards, {self.pattern(split)!r}")
        lines.append(f"{self.bytes / 1e6:,.1f} MB" + (f", {len(self.classes)} classes" if self.classes else ""))
        if self.mean:
            numbers = [", ".join(f"{value:.4f}" for value in values) for values in (self.mean, self.std)]
            lines.append(f"data.mean='({numbers[0]})' data.std='({numbers[1]})'")
        if self.rejected:
            lines.append(f"{self.rejected} images could not be used: {self.folder / 'rejected.csv'} says why")
        return "\n".join(lines)


def pack(
    source: str | Path | Source,
    out_dir: str | Path,
    *,
    size_px: int | None = None,
    maps: Path | None = None,
    quality: int = 90,
    full_chroma: bool = False,
    shard_mb: float = 256,
    val_share: float = 0.0,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Writes the images of a source into out_dir as train-000000.tar, ... (and val-000000.tar, ...).

    size_px re-encodes with this short side, otherwise the original bytes are kept. maps: a folder with the label map of
    each image, a PNG of its name. on_progress(done, total) counts
    images. workers: threads that decode; they change nothing but the time."""
    _check(size_px, quality, shard_mb, val_share)
    found = source if isinstance(source, Source) else find_images(source)
    found = found if maps is None else with_maps(found, maps)
    encoding = Encoding(size_px, quality, full_chroma)
    items = _in_order(found.items, seed, val_share)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    plan = _plan_of(items, found.classes, [*astuple(encoding), shard_mb, _VERSION])
    with Journal(out, plan) as journal:
        start = journal.finished[-1].next if journal.finished else 0
        prepared = _in_turn(items[start:], encoding, workers or os.cpu_count() or 1)
        writer = _Writer(out, journal, shard_mb * 1e6)
        for done, (item, packed) in enumerate(prepared, start + 1):
            writer.add(item, packed, done)
            if on_progress:
                on_progress(done, len(items))
        writer.close(len(items))
        return _finish(out, journal.finished, writer.rejected, found.classes)


class _Writer:
    """Samples to shards. A shard is written beside its name, read back as its index is built, renamed, noted."""

    def __init__(self, out: Path, journal: Journal, shard_bytes: float) -> None:
        self._out, self._journal, self._limit = out, journal, shard_bytes
        self._key = sum(shard.samples for shard in journal.finished)
        self._split, self._name = "", ""
        self.rejected: list[list[str]] = []  # since the last shard
        self._sums: list[list[int]] = []
        self._part: Path | None = None
        self._samples = 0
        for path in out.glob(f".*{_PART}*"):
            path.unlink()  # of the attempt that was killed

    def add(self, item: Item, packed: Packed, done: int) -> None:
        """The next image in order, the done-th of all."""
        if self._part is not None and (item.split != self._split or self._file.tell() >= self._limit):
            self.close(done - 1)
        if packed.rejected is not None:
            self.rejected.append([item.name, packed.rejected])
            return
        if self._part is None:
            self._open(item.split)
        self._tar.write({"__key__": f"{self._key:09d}", **packed.members})
        self._samples += 1
        self._key += 1
        if item.split == "train" and packed.sums:
            self._sums = (np.array(self._sums) + packed.sums).tolist() if self._sums else packed.sums

    def close(self, done: int) -> None:
        """Publishes the shard that is open, if one is."""
        if self._part is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        content = build_index(self._part)
        index = read_index(content, self._part)
        assert index.num_samples == self._samples and not index.excluded
        self._part.replace(self._out / self._name)
        publish(self._out / f"{self._name}.idx", content)
        state = (done, self.rejected, self._sums)
        number = (index.bytes, index.sha256, index.num_samples, index.body_sha256)
        self._journal.add(Finished(self._name, self._split, *number, *state))
        self._begin()

    def _open(self, split: str) -> None:
        number = sum(shard.split == split for shard in self._journal.finished)
        self._split, self._name = split, f"{split}-{number:06d}.tar"
        self._part = self._out / f".{self._name}{_PART}"
        self._file = self._part.open("wb")
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="")

    def _begin(self) -> None:
        self._part = None
        self._samples = 0
        self.rejected, self._sums = [], []


def _in_order(items: Sequence[Item], seed: int, val_share: float) -> list[Item]:
    """Items in the order of writing, the train split first. Who is held out follows from the name alone."""
    if val_share:
        held_out = val_share * 2.0**63
        items = [
            replace(item, split="val" if prf(seed, "pack", "val", item.name) < held_out else "train") for item in items
        ]
    shuffled = np.argsort(prf_array(seed, "pack", np.arange(len(items))), kind="stable")
    return sorted((items[index] for index in shuffled.tolist()), key=lambda item: item.split)


def _in_turn(items: Sequence[Item], encoding: Encoding, workers: int) -> Iterator[tuple[Item, Packed]]:
    """Items with what became of them, in order, a bounded number ahead. Decoders let go of the interpreter's lock."""
    waiting: deque[tuple[Item, Future[Packed]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(prepare, item, encoding)))
                if len(waiting) > 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(out: Path, finished: Sequence[Finished], rejected: list[list[str]], classes: list[str]) -> PackReport:
    """The files about the whole: manifest.json, _info.json (as timm reads it), classes.json, rejected.csv."""
    if not finished:
        raise ConfigError("none of the images can be decoded; see that the source is the right one")
    rows = [row for shard in finished for row in shard.rejected] + rejected
    splits = sorted({shard.split for shard in finished})
    by_split = {split: [shard for shard in finished if shard.split == split] for split in splits}
    mean, std = _statistics(finished)
    report = PackReport(
        out, {split: sum(shard.samples for shard in shards) for split, shards in by_split.items()},
        {split: [shard.name for shard in shards] for split, shards in by_split.items()},
        len(rows), sum(shard.bytes for shard in finished), mean, std, classes,
    )  # fmt: skip
    info = {
        split: {
            "name": split, "num_samples": report.samples[split], "filenames": report.shards[split],
            "shard_lengths": [shard.samples for shard in shards],
        }
        for split, shards in by_split.items()
    }  # fmt: skip
    publish(out / "_info.json", json.dumps({"splits": info}, indent=1).encode())
    if classes:
        publish(out / "classes.json", json.dumps({"classes": classes}, indent=1).encode())
    publish(out / "rejected.csv", _csv([["name", "reason"], *rows]))
    listed = [Listed(s.name, s.bytes, s.sha256, s.samples, s.index_sha256) for s in finished]
    about = {"mean": list(mean), "std": list(std), "classes": classes}
    write_manifest(out, Manifest(tuple(sorted(listed, key=lambda shard: shard.name)), about))
    return report


def _statistics(finished: Iterable[Finished]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the train pixels per channel, of values in 0..1."""
    sums = [shard.sums for shard in finished if shard.sums]
    if not sums:
        return (), ()
    count, total, square = np.array(sums, dtype=object).sum(0).T
    means = [int(t) / int(n) / 255 for t, n in zip(total, count)]
    stds = [max(0.0, int(s) / int(n) / 255**2 - m * m) ** 0.5 for s, n, m in zip(square, count, means)]
    return tuple(round(value, 6) for value in means), tuple(round(value, 6) for value in stds)


def _plan_of(items: Sequence[Item], classes: list[str], settings: list[object]) -> str:
    """A hash of everything that decides the bytes: names, labels, splits and versions in order, and the settings."""
    digest = hashlib.sha256(json.dumps([settings, classes]).encode())
    for item in items:
        digest.update(json.dumps([item.name, item.label, item.split, item.version]).encode())
    return digest.hexdigest()


def _csv(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "backslashreplace")


def _check(size_px: int | None, quality: int, shard_mb: float, val_share: float) -> None:
    if size_px is not None and size_px < 1:
        raise ConfigError(f"--size {size_px}: the short side must be at least 1 pixel")
    if not 1 <= quality <= 100:
        raise ConfigError(f"--quality {quality}: give 1 to 100 (90 is the default)")
    if shard_mb <= 0:
        raise ConfigError(f"--shard-mb {shard_mb}: the size of a shard must be above 0")
    if not 0 <= val_share < 1:
        raise ConfigError(f"--val-share {val_share}: give a share from 0 to below 1")
