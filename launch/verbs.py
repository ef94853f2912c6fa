"""The verbs around training: pack, index, evaluate, export. Each says what it did in a line or a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config import Config, to_json
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
            size_px=options.size,
            quality=options.quality,
            shard_mb=options.shard_mb,
            val_share=options.val_share,
            seed=options.seed,
            on_progress=_follow(progress),
        )
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


def evaluate(options: argparse.Namespace) -> None:
    """`lacuna evaluate`: a table of what the run's frozen features are worth, and evaluate-step-*.json beside it."""
    import torch

    from pretrain.engine.load import load_backbone, untrained_backbone
    from pretrain.evaluation.evaluate import evaluate as measure
    from pretrain.tracking.progress import Progress

    loaded = load_backbone(options.run, options.weights, options.step)
    cfg = _evaluation_settings(loaded.config.evaluation, options)
    batches = _labelled(loaded.config, cfg.max_images, options)
    backbones = {f"step {loaded.step} ({loaded.which})": loaded.backbone}
    if options.untrained:
        backbones["untrained"] = untrained_backbone(loaded.config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    with Progress(len(backbones) * sum(split.num_images for split in batches), "images", "evaluating") as progress:
        for name, backbone in backbones.items():
            results[name] = measure(backbone.to(device), *batches, cfg, device=device, on_progress=progress.advance)
    print(_table(results))
    facts = {"step": loaded.step, "weights": loaded.which, "settings": to_json(cfg), "results": results}
    path = options.run / f"evaluate-step-{loaded.step:07d}.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"written to {path}")


def export(options: argparse.Namespace) -> None:
    """`lacuna export`: the encoder for other people's code; prints what the parity check saw."""
    from pretrain.export import export as write

    print(write(options.run, options.to, options.out, weights=options.weights, step=options.step, force=options.force))


def _labelled(config: Config, max_images: int | None, options: argparse.Namespace) -> tuple[Any, Any]:
    """Batches to learn from and to be tested on: those named on the command line, else the run's own."""
    from pretrain.data.evaluation_batches import evaluation_batches
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import as_pattern, cache_of, patterns

    own_train, own_val = (None, None)
    if options.train_data is None or options.data is None:
        own_train, own_val = patterns(config.data, Path(config.runs_dir))
    train = as_pattern(options.train_data) if options.train_data else own_train
    val = as_pattern(options.data) if options.data else own_val
    if val is None:
        raise ConfigError("there are no labelled images to test on: give --data val/, or set data.val in the config")
    train_batches, val_batches = (
        evaluation_batches(
            open_shards(str(pattern), cache=cache_of(config.data, options.run)),
            config.data,
            batch_size=64,
            max_images=max_images,
        )
        for pattern in (train, val)
    )
    return train_batches, val_batches


def _table(results: dict[str, dict[str, Any]]) -> str:
    """Results side by side, warnings below."""
    names = list(results)
    keys = [key for key in results[names[0]] if key != "warnings"]
    width = max(len(key) for key in keys)
    lines = [" " * width + "".join(f"  {name:>18}" for name in names)]
    lines += [f"{key:<{width}}" + "".join(f"  {_text(results[name][key]):>18}" for name in names) for key in keys]
    return "\n".join(lines + [f"note: {warning}" for warning in results[names[0]]["warnings"]])


def _follow(progress: Progress) -> Callable[[int, int], None]:
    """An on_progress(done, total) that moves progress."""

    def update(done: int, total: int) -> None:
        progress.total = total
        progress.advance(done - progress.done)

    return update


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
