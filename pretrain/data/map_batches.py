"""Whole images with their label maps, for measuring a segmentation: in the order of the index, each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.augment import resize_box
from pretrain.data.evaluation_batches import FEW_BATCHES, IndexSource, bad_of, evenly
from pretrain.data.loader import Sample, decode_sample, members_of
from pretrain.data.settings import DataConfig
from pretrain.data.shards import IMAGE_EXTENSIONS, ShardSet
from pretrain.data.workers import Fetcher, refusals
from pretrain.types import BadSample


@dataclass(frozen=True)
class Mapped:
    """Some images and what is true of them."""

    images: Tensor  # (B, C, S_h, S_w) uint8, whole images squeezed to the size that the model sees
    maps: list[NDArray[np.uint8]]  # (H, W) each, as large as the image was: class of every pixel, 255 for none


class MapBatches:
    """Iterable, any number of times. `bad` lists what could not be used in the latest pass and was left out.

    max_images takes so many, evenly spaced over the index; of those a rank has every world-th, from the rank-th on."""

    def __init__(
        self, shards: ShardSet, cfg: DataConfig, num_classes: int, batch_size: int, rank: int = 0, world: int = 1,
        max_images: int | None = None,
    ) -> None:  # fmt: skip
        ids = evenly(shards.num_samples, max_images)[rank::world]
        self._source = IndexSource(shards, ids, batch_size, (*IMAGE_EXTENSIONS, *members_of(cfg)))
        self._cfg, self._num_classes = cfg, num_classes
        self.num_images = len(ids)
        self.bad: list[BadSample] = []

    def __iter__(self) -> Iterator[Mapped]:
        self.bad = []
        cfg = self._cfg
        pipeline = wds.DataPipeline(
            self._source, wds.map(partial(decode_sample, cfg=cfg, map_classes=self._num_classes)),
            wds.map(partial(_squeeze, size=cfg.image_size)), partial(_collate, source=self._source), refusals,
        )  # fmt: skip
        workers = min(cfg.workers, self.num_images // (FEW_BATCHES * self._source.batch_size))
        batches = Fetcher(pipeline, workers=workers, prefetch=cfg.prefetch, timeout_s=cfg.timeout_s)
        try:
            for batch in batches:
                self.bad += batch["bad"]
                if batch["maps"]:
                    yield Mapped(torch.stack(batch["images"]), batch["maps"])
        finally:
            batches.close()


def _squeeze(sample: Sample, size: tuple[int, int]) -> Sample:
    """The whole image at the model's size, whatever its shape was."""
    if "image" in sample:
        height, width = sample["image"].shape[:2]
        sample["image"] = resize_box(sample["image"], (0, 0, height, width), size)
    return sample


def _collate(samples: Iterator[Sample], source: IndexSource) -> Iterator[dict[str, Any]]:
    while group := list(islice(samples, source.batch_size)):
        good = [sample for sample in group if "image" in sample]
        yield {
            "images": [sample["image"] for sample in good],
            "maps": [sample["map"] for sample in good],
            "bad": bad_of(group, source),
        }
