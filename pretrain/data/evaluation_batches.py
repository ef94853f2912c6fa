"""Labelled images for evaluation: centre crops in the order of the index, each once, the same in every pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from pretrain.data.augment import center_crop
from pretrain.data.loader import Sample, decode_sample, read_sample
from pretrain.data.settings import DataConfig
from pretrain.data.shards import IMAGE_EXTENSIONS, ShardSet
from pretrain.data.workers import Fetcher, refusals
from pretrain.types import BadSample

FEW_BATCHES = 4  # batches a worker process should have to make, or it is not worth starting


def evaluation_batches(
    shards: ShardSet, cfg: DataConfig, batch_size: int, rank: int = 0, world: int = 1, max_images: int | None = None
) -> EvaluationBatches:
    """Batches of this rank: (images (B, C, H, W) uint8, labels (B,) int64, -1 for none); the last may be smaller.

    max_images takes so many, evenly spaced over the index; of those a rank has every world-th, from the rank-th on."""
    return EvaluationBatches(shards, cfg, batch_size, evenly(shards.num_samples, max_images)[rank::world])


def evenly(total: int, max_images: int | None) -> NDArray[np.int64]:
    """max_images places of total, evenly spaced; all where None."""
    number = total if max_images is None else min(max_images, total)
    return np.arange(number, dtype=np.int64) * total // number if number else np.zeros(0, np.int64)


class EvaluationBatches:
    """Iterable, any number of times. `bad` lists what could not be used in the latest pass and was left out."""

    def __init__(self, shards: ShardSet, cfg: DataConfig, batch_size: int, ids: np.ndarray) -> None:
        self._source = IndexSource(shards, ids, batch_size)
        self._cfg = cfg
        self.num_images = len(ids)
        self.bad: list[BadSample] = []

    def __len__(self) -> int:
        return -(-self.num_images // self._source.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.bad = []
        cfg, source = self._cfg, self._source
        pipeline = wds.DataPipeline(
            source, wds.map(partial(decode_sample, cfg=cfg)), wds.map(partial(_cut, cfg=cfg)),
            partial(_collate, source=source), refusals,
        )  # fmt: skip
        workers = min(cfg.workers, self.num_images // (source.batch_size * FEW_BATCHES))
        batches = Fetcher(pipeline, workers=workers, prefetch=cfg.prefetch, timeout_s=cfg.timeout_s)
        try:
            for batch in batches:
                self.bad += batch["bad"]
                if batch["images"] is not None:
                    yield batch["images"], torch.from_numpy(batch["labels"])
        finally:
            batches.close()


class IndexSource(IterableDataset[Sample]):
    """The samples of ids, places in the index; a worker has every so-many-th batch of them, which keeps their order."""

    def __init__(
        self, shards: ShardSet, ids: np.ndarray, batch_size: int, extensions: tuple[str, ...] = IMAGE_EXTENSIONS
    ) -> None:
        self.shards, self.ids, self.batch_size, self._extensions = shards, ids, batch_size, extensions

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        ends = np.cumsum(self.shards.lengths)
        for start in range(first * self.batch_size, len(self.ids), stride * self.batch_size):
            for place in self.ids[start : start + self.batch_size].tolist():
                shard = int(np.searchsorted(ends, place, side="right"))
                sample = place - int(ends[shard] - self.shards.lengths[shard])
                read = read_sample(self.shards, shard, sample, self._extensions)
                yield {**read, "__at__": (place, shard, sample)}


def _cut(sample: Sample, cfg: DataConfig) -> Sample:
    if "image" in sample:
        sample["image"] = center_crop(sample["image"], cfg.image_size)
    return sample


def _collate(samples: Iterator[Sample], source: IndexSource) -> Iterator[dict[str, Any]]:
    while group := list(islice(samples, source.batch_size)):
        good = [sample for sample in group if "image" in sample]
        yield {
            "images": default_collate([sample["image"] for sample in good]) if good else None,
            "labels": np.array([sample["__label__"] for sample in good], np.int64),
            "bad": bad_of(group, source),
        }


def bad_of(group: list[Sample], source: IndexSource) -> list[BadSample]:
    """Those of a group that cannot be used."""
    names, bad = source.shards.names, [sample for sample in group if "__bad__" in sample]
    return [BadSample(s["__at__"][0], names[s["__at__"][1]], s["__key__"], s["__bad__"]) for s in bad]
