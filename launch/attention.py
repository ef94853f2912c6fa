"""`lacuna evaluate --attention`: a table and a picture of attention-map ranks, their baselines beside them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.backbones.base import Backbone
    from pretrain.config import Config
    from pretrain.data.shards import ShardSet

_NUM_IMAGES = 30  # as in the paper
_BATCH_SIZE = 2  # the maps of so many images are held at a time
_SCORES_ONLY = ("methods", "pool", "layer", "train_data", "out")  # options of what features are worth


def evaluate_attention(options: argparse.Namespace) -> None:
    """Prints the table, and writes attention-rank.json and attention-rank.png in the run's directory; the images need
    no labels."""
    import torch

    from pretrain.data.evaluation_batches import evaluation_batches
    from pretrain.engine.load import load_backbone, untrained_backbone
    from pretrain.evaluation.attention_rank import attention_rank
    from pretrain.tracking.attention_picture import NAME, attention_picture
    from pretrain.tracking.progress import Progress

    run = _refuse_without_effect(options)
    loaded = load_backbone(run, options.weights or "ema", options.step)
    name, shards = _images(loaded.config, options, run)
    limit = _NUM_IMAGES if options.max_images is None else options.max_images
    batches = evaluation_batches(shards, loaded.config.data, _BATCH_SIZE, max_images=limit)
    backbones = {f"step {loaded.step} ({loaded.which})": loaded.backbone}
    if options.untrained:
        backbones["untrained"] = _under_the_same_mask(untrained_backbone(loaded.config), loaded.backbone)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    with Progress(len(backbones) * batches.num_images, "images", "attention") as progress:
        for which, backbone in backbones.items():
            results[which] = attention_rank(backbone.to(device), batches, device=device, on_progress=progress.advance)
    for which, result in results.items():
        print(_table(which, result))
    if batches.bad:
        print(f"note: {len(batches.bad)} images of {name} could not be decoded and were left out")
    path = run / f"{NAME}.json"
    facts = {"step": loaded.step, "weights": loaded.which, "data": name, "results": results}
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"written to {path} and {attention_picture(results, path.with_suffix('.png'))}")


def _refuse_without_effect(options: argparse.Namespace) -> Path:
    """The one run that is given; ConfigError for options that cannot take effect."""
    given = [f"--{name.replace('_', '-')}" for name in _SCORES_ONLY if getattr(options, name) is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)} has no effect with --attention, which looks at every block and learns nothing; "
            "leave it out, or --attention"
        )
    if options.max_images is not None and options.max_images < 1:
        raise ConfigError(f"--max-images={options.max_images}; give 1 image or more")
    if len(options.sources) > 1:
        raise ConfigError(f"--attention looks at one run, and {len(options.sources)} are given; give them one by one")
    return Path(options.sources[0])


def _under_the_same_mask(untrained: Backbone, trained: Backbone) -> Backbone:
    """untrained with what a schedule has set in trained since: figures under two masks could not be compared."""
    for name in trained.moving():
        untrained.get_buffer(name).copy_(trained.get_buffer(name))
    return untrained


def _images(config: Config, options: argparse.Namespace, run: Path) -> tuple[str, ShardSet]:
    """Pattern and shards of the images to look at: --data, else the run's data.val, else its data.train."""
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import as_pattern, cache_of, patterns

    if options.data is None:
        train, val = patterns(config.data, Path(config.runs_dir))
    else:
        train, val = "", as_pattern(options.data)
    pattern = train if val is None else val
    return pattern, open_shards(pattern, cache=cache_of(config.data, run))


def _table(name: str, result: dict[str, Any]) -> str:
    """A line a block, then the baselines and what the tokens of the last block are like."""
    lines = [f"{name}: {result['images']} images, {result['length']} tokens; rank: singular values that reach 80 %"]
    lines.append("block   rank    min    max  mask alone   row mass  least  mask alone")
    for index, block in enumerate(result["blocks"]):
        heads = block["rank"]
        rank = f"{sum(heads) / len(heads):7.1f}{min(heads):7.1f}{max(heads):7.1f}{block['mask_rank']:12d}"
        mass = f"{block['row_mass']:11.3f}{block['row_mass_least']:7.3f}{block['mask_row_mass']:12.3f}"
        lines.append(f"{index:5d}{rank}{mass}")
    fixed = ", ".join(f"{what} {rank}" for what, rank in result["baselines"].items())
    lines.append(f"baselines: {fixed}")
    lines.append(
        f"last tokens: {result['token_variance']:.1%} of their variance between tokens of an image, similarity "
        f"{result['token_similarity']:.3f}, effective rank {result['effective_rank']:.1f}"
    )
    return "\n".join(lines)
