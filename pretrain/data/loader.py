"""From positions in the endless stream to micro-batches: a webdataset pipeline around our own source.

    PlanSource -> decode -> crops -> collate         in worker processes
    Loader                                           in the training process: batches in the order of their steps

What stands in a batch follows from (shards, config, seed, step, rank, world, accumulation): not from the number of
workers, and not from where a run was stopped. Worker w of K makes units w, w + K, ... counted from the start; a unit is
one micro-batch, or, with `crops_per_decode=k`, the k micro-batches that k consecutive steps cut from the same images.
So k steps make a super-step: super-step S = step // k trains on positions [S * B, (S + 1) * B), on crop step % k."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from masking.rng import prf
from pretrain.data.augment import boxes_in_crop, crop_and_flip, crop_key, map_in_crop
from pretrain.data.bad_samples import ErrorBudget
from pretrain.data.boxes import BadBoxes, box_shares, read_boxes
from pretrain.data.decode import BadImage, decode
from pretrain.data.label_maps import BadMap, read_map
from pretrain.data.order import BAD, OK, Order, rank_positions, sample_digest
from pretrain.data.rand_augment import change
from pretrain.data.settings import DataConfig
from pretrain.data.shards import IMAGE_EXTENSIONS, BadBytes, ShardSet, image_extension
from pretrain.data.workers import Fetcher, check_shared_memory, refusals
from pretrain.types import VOID, BadSample, Batch

__all__ = ["ErrorBudget", "Loader", "PlanSource", "build_loader", "collate", "decode_sample", "read_sample"]

Sample = dict[str, Any]  # webdataset's: members by extension, and what we know of it between double underscores
_NO_BOXES = np.zeros((0, 4), np.float32)


def build_loader(
    shards: ShardSet, cfg: DataConfig, seed: int, *, rank: int, world: int, accumulation: int, start_step: int,
    device: torch.device | str = "cpu", num_classes: int | None = None,
) -> Loader:  # fmt: skip
    """This rank's micro-batches from optimizer step start_step on, without end; `accumulation` of them make a step.
    With num_classes a sample is bad whose label is not one of 0 to num_classes - 1; where data.maps is set, that is
    asked of every pixel of its map in its place."""
    source = PlanSource(shards, cfg, seed, rank, world, accumulation, start_step, num_classes)
    return Loader(source, pin=torch.device(device).type == "cuda")


class PlanSource(IterableDataset[Sample]):
    """The samples of one rank in the order of its micro-batches, undecoded; a worker yields those of its own units."""

    def __init__(
        self, shards: ShardSet, cfg: DataConfig, seed: int, rank: int, world: int, accumulation: int, start_step: int,
        num_classes: int | None = None,
    ) -> None:  # fmt: skip
        self.shards, self.cfg, self.seed, self.start_step = shards, cfg, seed, start_step
        self.num_classes = num_classes if cfg.maps is None else None
        self.map_classes = None if cfg.maps is None else num_classes
        self.order = Order(shards.lengths, seed, cfg.lanes, cfg.block)
        self.rank, self.world, self.accumulation = rank, world, accumulation
        self._extensions = (*IMAGE_EXTENSIONS, *members_of(cfg))
        self.micro_size = len(rank_positions(0, cfg.batch_size, rank, world, accumulation)[0])

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        for positions, crops in islice(self.units(), first, None, stride):
            _, shards, samples = self.order.locate(positions)
            for position, shard, sample in zip(positions.tolist(), shards.tolist(), samples.tolist(), strict=True):
                known = {"__at__": (position, shard, sample), "__crops__": crops}
                yield with_label(read_sample(self.shards, shard, sample, self._extensions), self.num_classes) | known

    def units(self) -> Iterator[tuple[np.ndarray, range]]:
        """Endless (positions (micro_size,) int64, crops to cut of them), from start_step on."""
        many = self.cfg.crops_per_decode
        first, cut = divmod(self.start_step, many)
        for super_step in count(first):
            crops = range(cut if super_step == first else 0, many)
            for positions in rank_positions(super_step, self.cfg.batch_size, self.rank, self.world, self.accumulation):
                yield positions, crops

    def shards_of(self, unit: int) -> list[str]:
        """Names of the shards that a unit reads, counted from the start."""
        positions, _ = next(islice(self.units(), unit, None))
        return sorted({self.shards.names[shard] for shard in self.order.locate(positions)[1].tolist()})


def members_of(cfg: DataConfig) -> tuple[str, ...]:
    """Extensions of what is read beside the image."""
    return ("json",) * (cfg.boxes is not None) + ((cfg.maps,) if cfg.maps is not None else ())


def read_sample(shards: ShardSet, shard: int, sample: int, extensions: tuple[str, ...] = IMAGE_EXTENSIONS) -> Sample:
    """The bytes of the sample's members with these extensions, or `__bad__` with the reason where they are not what
    they were; and its class as the index has it, -1 for none."""
    label = int(shards.labels(shard)[sample])
    try:
        return {**shards.read(shard, sample, extensions), "__label__": label}
    except BadBytes as error:
        known = {"__key__": shards.key(shard, sample), "__url__": shards.names[shard], "__label__": label}
        return {**known, "__bad__": str(error)}


def with_label(sample: Sample, num_classes: int | None) -> Sample:
    """The sample, with `__bad__` where its label is none of num_classes; None asks for no label."""
    label = sample["__label__"]
    if num_classes is None or "__bad__" in sample or 0 <= label < num_classes:
        return sample
    found = "it has no label" if label < 0 else f"its label is {label}"
    wanted = f"objective.num_classes={num_classes} needs one of 0 to {num_classes - 1}"
    return {**sample, "__bad__": f"{found}, and {wanted}"}


def decode_sample(sample: Sample, cfg: DataConfig, map_classes: int | None = None) -> Sample:
    """The sample with `image` (H, W, C) uint8 in the place of its bytes, where its json was read `boxes` (G, 4) in
    shares of the image, and with map_classes `map` (H, W) uint8; or with the reason why not as `__bad__`."""
    known = {name: value for name, value in sample.items() if name.startswith("__")}
    if "__bad__" in sample:
        return known
    extension = image_extension([name for name in sample if name != cfg.maps])
    if extension is None:
        return {**known, "__bad__": f"no image among its members; one of {', '.join(IMAGE_EXTENSIONS)} is needed"}
    try:
        image = decode(sample[extension], cfg.in_chans, cfg.max_pixels, cfg.apply_exif)
        if cfg.boxes is not None and "json" in sample:
            known["boxes"] = box_shares(read_boxes(sample["json"]), cfg.boxes, image.shape[0], image.shape[1])
        if cfg.maps is not None and map_classes is not None:
            known["map"] = read_map(sample.get(cfg.maps), cfg, map_classes, image.shape[0], image.shape[1])
        return {**known, "image": image}
    except (BadImage, BadBoxes, BadMap) as error:
        return {**known, "__bad__": str(error)}


def collate(samples: Iterator[Sample], source: PlanSource) -> Iterator[dict[str, Any]]:
    """Units of micro_size samples: images (crops, B, C, H, W) uint8 in one piece of shared memory, maps likewise
    (crops, B, H, W), and small arrays, among them, where data.boxes is set, boxes (crops, B, G, 4) float32."""
    while group := list(islice(samples, source.micro_size)):
        crops = group[0]["__crops__"]
        boxes = [sample["boxes"] for sample in group]
        at = [sample["__at__"] for sample in group]
        status = [BAD if "__bad__" in sample else OK for sample in group]
        shares = [
            sample_digest(source.shards.digests[shard], index, state)
            for (_, shard, index), state in zip(at, status, strict=True)
        ]
        yield {
            "images": _stacked([sample["crops"] for sample in group]),
            "maps": None if source.map_classes is None else _stacked([sample["maps"] for sample in group]),
            "labels": np.array([-1 if "__bad__" in sample else sample["__label__"] for sample in group], np.int64),
            "boxes": None if source.cfg.boxes is None else _filled_up(boxes, len(crops)),
            "weight": np.array([float(state == OK) for state in status], np.float32),
            "positions": np.array([position for position, _, _ in at], np.int64),
            "digests": [sum(prf(share, "crop", crop) if crop else share for share in shares) % 2**64 for crop in crops],
            "bad": [_bad(sample, source.shards) for sample in group if "__bad__" in sample],
        }


class Loader:
    """Iterates micro-batches in the order of their steps, without end. `close` ends its workers."""

    def __init__(self, source: PlanSource, pin: bool) -> None:
        cfg = source.cfg
        pipeline = wds.DataPipeline(
            source,
            wds.map(partial(decode_sample, cfg=cfg, map_classes=source.map_classes)),
            wds.map(partial(_cut, cfg=cfg, seed=source.seed)),
            partial(collate, source=source),
            refusals,
        )
        if cfg.workers:
            planes = cfg.in_chans + (cfg.maps is not None)
            unit_bytes = cfg.crops_per_decode * source.micro_size * planes * cfg.image_size[0] * cfg.image_size[1]
            check_shared_memory(cfg.workers * (cfg.prefetch + 1) + source.accumulation, unit_bytes)
        self._source, self._units_taken = source, 0
        self._units = Fetcher(
            pipeline, workers=cfg.workers, prefetch=cfg.prefetch, timeout_s=cfg.timeout_s, pin=pin,
            awaited=self._awaited,
        )  # fmt: skip
        self._batches = self._in_order()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """The next micro-batch. DataError where data is unavailable, SavedForLater where a worker died or hangs."""
        return next(self._batches)

    def close(self) -> None:
        """Ends the workers."""
        self._units.close()

    def _in_order(self) -> Iterator[Batch]:
        """Units come by micro-batch, each with all its crops; steps want the first crop of all units, then the next."""
        while True:
            units: list[dict[str, Any]] = []
            for unit in islice(self._units, self._source.accumulation):
                units.append(unit)
                self._units_taken += 1
                yield _batch(unit, 0)
            if not units:
                return  # closed
            for crop in range(1, len(units[0]["digests"])):
                for unit in units:
                    yield _batch(unit, crop)

    def _awaited(self) -> str:
        return f" while reading {', '.join(self._source.shards_of(self._units_taken)[:8])}"


def _cut(sample: Sample, cfg: DataConfig, seed: int) -> Sample:
    image, boxes, classes = (sample.pop(name, None) for name in ("image", "boxes", "map"))
    crops = sample["__crops__"]
    sample["boxes"] = [_NO_BOXES] * len(crops)
    if image is None:
        sample["crops"] = [torch.zeros((cfg.in_chans, *cfg.image_size), dtype=torch.uint8)] * len(crops)
        if cfg.maps is not None:
            sample["maps"] = [torch.full(cfg.image_size, VOID, dtype=torch.uint8)] * len(crops)
    else:
        keys = [crop_key(seed, sample["__at__"][0], crop) for crop in crops]
        sample["crops"] = [change(crop_and_flip(image, key, cfg), key, cfg) for key in keys]
        if boxes is not None:
            sample["boxes"] = [boxes_in_crop(boxes, image.shape[0], image.shape[1], key, cfg) for key in keys]
        if classes is not None:
            sample["maps"] = [map_in_crop(classes, key, cfg) for key in keys]
    return sample


def _stacked(samples: list[list[Tensor]]) -> Tensor:
    """Crops by sample as one tensor (crops, B, ...)."""
    stacked: Tensor = default_collate([of_sample[crop] for crop in range(len(samples[0])) for of_sample in samples])
    return stacked.unflatten(0, (len(samples[0]), len(samples)))


def _filled_up(boxes: list[list[np.ndarray]], num_crops: int) -> np.ndarray:
    """Boxes by sample and crop as one array (crops, B, G, 4) float32; G is the most that one has, and at least 1."""
    most = max(1, *(len(of_crop) for of_sample in boxes for of_crop in of_sample))
    filled = np.zeros((num_crops, len(boxes), most, 4), np.float32)
    for row, of_sample in enumerate(boxes):
        for crop, of_crop in enumerate(of_sample):
            filled[crop, row, : len(of_crop)] = of_crop
    return filled


def _batch(unit: dict[str, Any], crop: int) -> Batch:
    return Batch(
        images=unit["images"][crop],
        labels=_tensor(unit["labels"]),
        weight=_tensor(unit["weight"]),
        positions=_tensor(unit["positions"]),
        digest=unit["digests"][crop],
        bad=tuple(unit["bad"]),
        boxes=None if unit["boxes"] is None else _tensor(unit["boxes"][crop]),
        maps=None if unit["maps"] is None else unit["maps"][crop],
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)


def _bad(sample: Sample, shards: ShardSet) -> BadSample:
    position, shard, _ = sample["__at__"]
    return BadSample(position, shards.names[shard], sample["__key__"], sample["__bad__"])
