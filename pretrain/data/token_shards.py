"""Shards of tokens: written once by a tokenizer, read in place of its images by every run that learns on it.

A shard of images becomes one of tokens, whole or not at all, so a command that was cut goes on where it was. Images are
cut as for evaluation, the largest centred box resized. The manifest says which weights made them, from which images."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from masking.mask import Grid
from pretrain.data.evaluation_batches import EvaluationBatches
from pretrain.data.indexing import index_shards
from pretrain.data.locations import is_remote
from pretrain.data.manifest import Manifest, write_manifest
from pretrain.data.settings import DataConfig
from pretrain.data.shard_folder import folder_manifest
from pretrain.data.shards import ShardSet
from pretrain.errors import ConfigError
from pretrain.tokenizers.frozen import FrozenTokenizer
from pretrain.tokenizers.stored import MAX_SIDE, store, stored_kind
from pretrain.types import BadSample

_ABOUT = "tokens"  # what the manifest calls it


@dataclass(frozen=True)
class TokenReport:
    """What came of it: its text is what a person wants to read."""

    folder: Path
    about: dict[str, Any]
    num_samples: int
    num_shards: int
    bad: tuple[BadSample, ...]  # of the shards written now

    def __str__(self) -> str:
        height, width = self.about["grid"]
        lines = [f"tokens of {self.num_samples:,} images in {self.num_shards} shards, '{self.folder}/*.tar'"]
        lines += [f"left out: {sample.key} in {sample.shard}: {sample.reason}" for sample in self.bad[:20]]
        lines += [f"and {len(self.bad) - 20} more"] if len(self.bad) > 20 else []
        return "\n".join([
            *lines,
            f"train on them with data.image_size={height},{width} data.in_chans={self.about['channels']} "
            "data.crop_scale=1,1 data.crop_aspect=1,1 backbone.tokenizer.stored=true",
        ])  # fmt: skip


def tokenize(
    tokenizer: FrozenTokenizer,
    shards: ShardSet,
    out: Path,
    image_size: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> TokenReport:
    """Writes tokens of every image of shards, cut to image_size pixels, and of its mirror image, into out, a folder;
    on_progress hears how many images more are done. Raises ConfigError, DataError."""
    kind = tokenizer.kind
    grid = Grid(image_size[0] // kind.patch_size, image_size[1] // kind.patch_size)
    _check(tokenizer, image_size, grid)
    about = {
        "tokenizer": tokenizer.digest, "images": shards.fingerprint, "image_size": list(image_size),
        "grid": [grid.height, grid.width], "channels": stored_kind(kind).in_chans,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    manifest = folder_manifest(out)
    if (manifest is None and any(out.glob("*.tar"))) or (manifest and manifest.about.get(_ABOUT) != about):
        raise ConfigError(f"{out} holds other shards, or tokens of other images or weights; name another folder")
    _describe(out, about)
    cfg = DataConfig("", image_size=image_size, in_chans=kind.in_chans, workers=workers)
    bad: list[BadSample] = []
    ends = np.cumsum(shards.lengths)
    for shard, (end, length) in enumerate(zip(ends.tolist(), shards.lengths.tolist(), strict=True)):
        path = out / f"tokens-{shard:06d}.tar"
        if not path.exists():
            batches = EvaluationBatches(shards, cfg, batch_size, np.arange(end - length, end, dtype=np.int64))
            _write(path, _samples(batches, shards, shard, end - length, tokenizer, grid, device, on_progress))
            bad += batches.bad
        elif on_progress is not None:
            on_progress(length)
    found = index_shards(f"{out}/tokens-*.tar", verify="header")
    return TokenReport(out, about, found.num_samples, len(found.shards), tuple(bad))


def check_tokens(data: DataConfig, shards: ShardSet, tokenizer: FrozenTokenizer | None) -> None:
    """ConfigError where shards hold tokens and nobody expects them (tokenizer None), or the other way round, or tokens
    of another tokenizer or grid. Of remote shards nothing is asked."""
    folders = {Path(name).parent for name in shards.names if not is_remote(name)}
    for folder in sorted(folders):
        manifest = folder_manifest(folder)
        about = None if manifest is None else manifest.about.get(_ABOUT)
        if about is None and tokenizer is not None:
            raise ConfigError(
                f"backbone.tokenizer.stored=true, and {folder} holds no tokens; write some with lacuna tokenize, or "
                "set backbone.tokenizer.stored=false"
            )
        if about is None:
            continue
        if tokenizer is None:
            raise ConfigError(
                f"{folder} holds tokens, and no images; set backbone.tokenizer.stored=true and its path, or name "
                "shards of images"
            )
        if about["tokenizer"] != tokenizer.digest:
            raise ConfigError(
                f"{folder} holds tokens of another tokenizer, or of other weights of it, than backbone.tokenizer.path "
                "names; name the one that wrote them, or write them anew with lacuna tokenize"
            )
        if about["grid"] != list(data.image_size):
            raise ConfigError(
                f"{folder} holds {about['grid'][0]} x {about['grid'][1]} tokens of each image, and data.image_size="
                f"{data.image_size[0]},{data.image_size[1]}; set it to {about['grid'][0]},{about['grid'][1]}"
            )


def _check(tokenizer: FrozenTokenizer, image_size: tuple[int, int], grid: Grid) -> None:
    patch = tokenizer.kind.patch_size
    if any(side < patch or side % patch for side in image_size) or grid.width > MAX_SIDE or grid.width < 2:
        raise ConfigError(
            f"--image-size={image_size[0]},{image_size[1]}: each must be a multiple of {patch}, the side of the "
            f"tokenizer's patches, and give 2 to {MAX_SIDE} tokens a row"
        )
    if (tokenizer.kind.num_codes or 0) > 1 << 16:
        raise ConfigError(f"{tokenizer.kind.num_codes} codes do not fit in the two bytes that a token is stored in")


def _describe(out: Path, about: dict[str, Any]) -> None:
    """Says what the shards of the folder are, before there are any: who comes after a kill reads it."""
    manifest = folder_manifest(out) or Manifest(())
    write_manifest(out, replace(manifest, about={**manifest.about, _ABOUT: about}))


def _samples(
    batches: EvaluationBatches,
    shards: ShardSet,
    shard: int,
    first: int,
    tokenizer: FrozenTokenizer,
    grid: Grid,
    device: torch.device | str,
    on_progress: Callable[[int], None] | None,
) -> Iterator[dict[str, Any]]:
    """What a tar has of each image that can be used."""
    place, seen = first, 0
    for images, labels in batches:
        left_out = {sample.position for sample in batches.bad}
        arrays = _arrays(tokenizer, images.to(device), grid)
        for array, label in zip(arrays, labels.tolist(), strict=True):
            while place in left_out:
                place += 1
            sample: dict[str, Any] = {"__key__": shards.key(shard, place - first), "npy": array}
            yield sample if label < 0 else {**sample, "cls": str(label).encode()}
            place += 1
        if on_progress is not None:
            on_progress(place - first - seen)
            seen = place - first


def _arrays(tokenizer: FrozenTokenizer, images: Tensor, grid: Grid) -> list[bytes]:
    ask = tokenizer.moments if tokenizer.kind.sampled else tokenizer.tokens
    stored = store(ask(images), ask(images.flip(-1)), grid)
    found = []
    for array in stored.permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        found.append(buffer.getvalue())
    return found


def _write(path: Path, samples: Iterator[dict[str, Any]]) -> None:
    """The tar whole or not at all."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with wds.TarWriter(str(part), encoder=False, mtime=0) as writer:
            for sample in samples:
                writer.write(sample)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
