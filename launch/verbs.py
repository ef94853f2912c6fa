"""The verbs around training: pack, tokenize, index, masks. Each says what it did in few lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.tracking.progress import Progress


def pack(options: argparse.Namespace) -> None:
    """`lacuna pack`: images to shards, with progress."""
    from pretrain.data.pack import pack as pack_images
    from pretrain.tracking.progress import Progress

    with Progress(None, "images", "packing") as progress:
        report = pack_images(
            options.source,
            options.out,
            maps=options.maps,
            size_px=options.size,
            quality=options.quality,
            shard_mb=options.shard_mb,
            val_share=options.val_share,
            seed=options.seed,
            on_progress=_follow(progress),
        )
    print(report)


def tokenize(options: argparse.Namespace) -> None:
    """`lacuna tokenize`: shards of tokens by a run's tokenizer, with progress."""
    import torch

    from pretrain.config import read_config
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import as_pattern
    from pretrain.data.token_shards import tokenize as write
    from pretrain.tokenizers.frozen import TokenizerConfig, frozen_tokenizer
    from pretrain.tracking.progress import Progress

    if options.batch_size < 1 or options.workers < 0:
        raise ConfigError(f"--batch-size={options.batch_size} must be 1 or more, --workers={options.workers} 0 or more")
    named = TokenizerConfig(str(options.run), options.weights)
    named.check()
    kind = named.kind()
    tokenizer = frozen_tokenizer(named, kind.in_chans)
    asked = options.image_size
    if asked is None and named.is_file:
        raise ConfigError(f"{options.run} is a file, which names no size of images: give --image-size 256,256, say")
    size = sides(asked) if asked is not None else read_config(options.run / "config.json").data.image_size
    shards = open_shards(as_pattern(options.shards))
    with Progress(shards.num_samples, "images", "tokenizing") as progress:
        report = write(
            tokenizer, shards, options.out, size, batch_size=options.batch_size, workers=options.workers,
            device="cuda" if torch.cuda.is_available() else "cpu", on_progress=progress.advance,
        )  # fmt: skip
    print(report)


def index(options: argparse.Namespace) -> None:
    """`lacuna index`: validates tars, writes their sidecars and the manifest."""
    from pretrain.data.indexing import index_shards
    from pretrain.data.sources import as_pattern
    from pretrain.tracking.progress import Progress

    with Progress(None, "shards", "indexing") as progress:
        report = index_shards(
            as_pattern(options.shards), verify=options.verify, dedupe=options.dedupe, on_progress=_follow(progress)
        )
    print(report)


def _follow(progress: Progress) -> Callable[[int, int], None]:
    """An on_progress(done, total) that moves progress."""

    def update(done: int, total: int) -> None:
        progress.total = total
        progress.advance(done - progress.done)

    return update


def sides(text: str) -> tuple[int, int]:
    """Height and width in pixels, as --image-size has them. Raises ConfigError."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"--image-size={text}; write height and width in pixels, for example 224,224")
    return int(parts[0]), int(parts[1])


def masks(options: argparse.Namespace) -> None:
    """`lacuna masks`: one picture of all strategies."""
    from pretrain.tracking.panels import masks_picture

    grid = _grid(options.grid)
    masks_picture(options.out, grid, options.ratio, options.on, options.seed, options.strategy)
    print(options.out)


def _grid(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--grid={text}; write it as patches down x across, for example 14x14")
    return int(parts[0]), int(parts[1])
