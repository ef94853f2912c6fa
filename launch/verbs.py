"""The verbs around training: pack, index, evaluate, export. Each says what it did in a line or a table."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError


def pack(options: argparse.Namespace) -> None:
    """`lacuna pack`: images to shards, with progress."""
    from pretrain.data.pack import pack as pack_images

    from pretrain.tracking.progress import Progress

    with Progress(None, "images", "packing") as progress:
        report = pack_images(
            options.source,
            options.out,
            size_px=options.size,
            quality=options.quality,
            shard_mb=options.shard_mb,
            val_share=options.val_share,
            seed=options.seed,
            on_progress=progress.to,
        )
    print(report)


def index(options: argparse.Namespace) -> None:
    """`lacuna index`: validates tars, writes their sidecars and the manifest."""
    from pretrain.data.shards import open_shards

    from pretrain.data.sources import as_pattern
    from pretrain.tracking.progress import Progress

    with Progress(None, "images", "indexing") as progress:
        shards = open_shards(
            as_pattern(options.shards), verify=options.verify, dedupe=options.dedupe, on_progress=progress.to
        )
    print(f"{shards.num_samples:,} images in {len(shards.names)} shards, fingerprint {shards.fingerprint[:16]}")
    for line in shards.excluded_summary():
        print(line)


def evaluate(options: argparse.Namespace) -> None:
    """`lacuna evaluate`: one table of methods, for the run's weights and, on request, the untrained encoder."""
    import torch
    from pretrain.data.shards import open_shards
    from pretrain.evaluation.load import load_backbone, untrained_backbone

    from pretrain.data.evaluation_batches import evaluation_batches
    from pretrain.data.sources import as_pattern, patterns
    from pretrain.evaluation.evaluate import evaluate as measure
    from pretrain.tracking.metrics import append_evaluation

    loaded = load_backbone(options.run, options.weights, options.step)
    config = loaded.config
    cfg = _evaluation_settings(config.evaluation, options)
    train_pattern, val_pattern = patterns(config.data, Path(config.runs_dir))
    train_pattern = as_pattern(options.train_data) if options.train_data else train_pattern
    val_pattern = as_pattern(options.data) if options.data else val_pattern
    if val_pattern is None:
        raise ConfigError("no labelled images to test on: give --data val/ or set data.val in the config")
    train, val = open_shards(train_pattern), open_shards(val_pattern)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def batches(shards: Any) -> Any:
        return evaluation_batches(shards, config.data, batch_size=64, rank=0, world=1, max_images=cfg.max_images)

    rows = [(f"step {loaded.step} ({loaded.which})", loaded.backbone)]
    if options.untrained:
        rows.append(("untrained", untrained_backbone(config)))
    for name, backbone in rows:
        result = measure(backbone.to(device), batches(train), batches(val), cfg, device=device)
        print(f"{name}: " + ", ".join(f"{key} {_text(value)}" for key, value in result.items()))
        if name != "untrained":
            append_evaluation(
                options.run, {"step": loaded.step, "weights": loaded.which, "by": "lacuna evaluate", **result}
            )


def export(options: argparse.Namespace) -> None:
    """`lacuna export`: the encoder for other people's code; prints what the parity check saw."""
    from pretrain.export import export as write

    print(write(options.run, options.to, options.out, weights=options.weights, step=options.step, force=options.force))


def _evaluation_settings(cfg: Any, options: argparse.Namespace) -> Any:
    methods = tuple(part.strip() for part in options.methods.split(",") if part.strip())
    unknown = sorted(set(methods) - {"knn", "linear"})
    if unknown or not methods:
        raise ConfigError(f"--methods={options.methods}; choose from knn and linear, separated by a comma")
    changes = {"methods": methods}
    for name in ("pool", "layer", "max_images"):
        value = getattr(options, name)
        changes |= {} if value is None else {name: value}
    return replace(cfg, **changes)


def _text(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
