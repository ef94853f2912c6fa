"""The verbs around training: pack, tokenize, index, evaluate, masks. Each says what it did in few lines."""

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
    from pretrain.backbones.base import Backbone
    from pretrain.data.shards import ShardSet
    from pretrain.engine.load import Loaded
    from pretrain.evaluation.settings import EvaluationConfig
    from pretrain.objectives.base import Objective
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


def evaluate(options: argparse.Namespace) -> None:
    """`lacuna evaluate`: a table of what the run's frozen features, and its own classifier where it has one, are worth;
    evaluate-step-*.json beside it."""
    import torch

    from pretrain.data.evaluation_batches import evaluation_batches
    from pretrain.engine.load import load_backbone
    from pretrain.evaluation.evaluate import evaluate as measure
    from pretrain.evaluation.head import Head
    from pretrain.tracking.progress import Progress

    loaded = load_backbone(options.run, options.weights, options.step)
    cfg = _evaluation_settings(loaded.config, options)
    names, sets = _labelled(loaded.config, options)
    train, val = (
        evaluation_batches(split, loaded.config.data, batch_size=64, max_images=cfg.max_images) for split in sets
    )
    candidates = {f"step {loaded.step} ({loaded.which})": (loaded.backbone, loaded.objective)}
    if options.untrained:
        candidates["untrained"] = _untrained(loaded)
    passes = {"head": val.num_images} if "head" in cfg.methods else {}
    if set(cfg.methods) != {"head"}:
        passes["features"] = train.num_images + val.num_images
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    with Progress(len(candidates) * sum(passes.values()), "images", "evaluating") as progress:
        for name, (backbone, objective) in candidates.items():
            head = None if objective is None else Head.of(objective.to(device), loaded.config.objective)
            results[name] = measure(
                backbone.to(device), train, val, cfg, head=head, device=device, names=names,
                on_progress=progress.advance,
            )  # fmt: skip
    if options.train_data is None and sets[0].fingerprint != loaded.fingerprint:
        print(f"note: {names[0]} is not the data this run was trained on: its fingerprint is another")
    print(_table(results))
    facts = {"step": loaded.step, "weights": loaded.which, "settings": to_json(cfg), "results": results}
    path = options.run / f"evaluate-step-{loaded.step:07d}.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"written to {path}")


def _untrained(loaded: Loaded) -> tuple[Backbone, Objective | None]:
    """Encoder, and objective where that is a classifier, as they were before training."""
    from pretrain.engine.load import untrained_backbone, untrained_model

    if loaded.objective is None:
        return untrained_backbone(loaded.config), None
    model = untrained_model(loaded.config)
    return model.backbone, model.objective


def _labelled(config: Config, options: argparse.Namespace) -> tuple[tuple[str, str], list[ShardSet]]:
    """Patterns and shards to learn from and to be tested on: those of the command line, else the run's own."""
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import as_pattern, cache_of, patterns

    own: tuple[str | None, str | None] = (None, None)
    if options.train_data is None or options.data is None:
        own = patterns(config.data, Path(config.runs_dir))
    train, val = (
        as_pattern(text) if text else pattern
        for text, pattern in zip((options.train_data, options.data), own, strict=True)
    )
    if train is None or val is None:
        raise ConfigError("there are no labelled images to test on: give --data val/, or set data.val in the config")
    cache = cache_of(config.data, options.run)
    return (train, val), [open_shards(name, cache=cache) for name in (train, val)]


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


def sides(text: str) -> tuple[int, int]:
    """Height and width in pixels, as --image-size has them. Raises ConfigError."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"--image-size={text}; write height and width in pixels, for example 224,224")
    return int(parts[0]), int(parts[1])


def _evaluation_settings(config: Config, options: argparse.Namespace) -> EvaluationConfig:
    from pretrain.checks import check_methods

    has_head = config.objective.num_classes is not None
    asked = f"knn,linear{',head' * has_head}" if options.methods is None else options.methods
    methods = tuple(part.strip() for part in asked.split(",") if part.strip())
    unknown = sorted(set(methods) - {"knn", "linear", "linear-sgd", "lowshot", "head"})
    if unknown or not methods:
        raise ConfigError(f"--methods={options.methods}; choose of knn, linear, linear-sgd, lowshot, head, by commas")
    check_methods(config.objective, methods, "--methods")
    changes: dict[str, Any] = {"methods": methods}
    for name in ("pool", "layer", "max_images"):
        value = getattr(options, name)
        changes |= {} if value is None else {name: value}
    if options.all_images:
        changes["max_images"] = None
    return replace(config.evaluation, **changes)


def _text(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


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
