"""`lacuna segment`: what a segmentation run finds in whole images, as a table, a JSON file and a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.config import Config
    from pretrain.data.shards import ShardSet


def add_options(verb: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verb.add_argument("run", type=Path, help="run directory, for example runs/segment_camvid")
    verb.add_argument("--data", help="shards with label maps: a pattern or a folder (default: the run's data.val)")
    verb.add_argument(
        "--weights", choices=("ema", "model"), default="ema", help="which weights (default ema, where kept)"
    )
    verb.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    verb.add_argument("--max-images", type=int, help="use at most so many images (default: all)")
    verb.add_argument("--examples", type=int, default=6, help="images in the picture (default 6)")


def segment(options: argparse.Namespace) -> None:
    """Measures the run's newest checkpoint; segments-step-*.json and panels/segments-*.png in its directory."""
    import torch

    from pretrain.config import read_config
    from pretrain.data.map_batches import MapBatches
    from pretrain.engine.load import load_backbone
    from pretrain.evaluation.segmentation import class_names, figures
    from pretrain.evaluation.segmentation import segment as count
    from pretrain.objectives.base import Segmenting
    from pretrain.tracking.progress import Progress
    from pretrain.tracking.segments_picture import GROUP, segments_picture

    config = read_config(options.run / "config.json")
    if not isinstance(config.objective, Segmenting):
        name = type(config.objective).__name__
        raise ConfigError(f"{options.run} is a run of {name}, which segments nothing; use lacuna evaluate")
    if options.examples < 1 or (options.max_images or 1) < 1:
        raise ConfigError(f"--examples={options.examples} and --max-images={options.max_images} must be 1 or more")
    loaded = load_backbone(options.run, options.weights, options.step, with_objective=True)
    assert loaded.objective is not None
    where, shards = _shards(config, options)
    classes, names = config.objective.pixel_classes, class_names(config)
    batches = MapBatches(shards, config.data, classes, batch_size=16, max_images=options.max_images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(batches.num_images, "images", "segmenting") as progress:
        found = count(
            loaded.objective.to(device), loaded.backbone.to(device), batches, classes, device,
            num_examples=options.examples, on_progress=progress.advance,
        )  # fmt: skip
    result = figures(found, names, where)
    print(_table(result))
    title = f"step {loaded.step}: mIoU {100 * result['miou']:.1f} %"
    picture = options.run / "panels" / f"{GROUP}-{loaded.step:07d}.png"
    segments_picture(found.examples, names, picture, title)
    path = options.run / f"{GROUP}-step-{loaded.step:07d}.json"
    facts = {"step": loaded.step, "weights": loaded.which, "data": where, "result": result}
    path.write_text(json.dumps(facts | {"confusion": found.confusion.tolist()}, indent=2) + "\n")
    print(f"written to {path} and {picture}")


def _shards(config: Config, options: argparse.Namespace) -> tuple[str, ShardSet]:
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import as_pattern, cache_of, refuse_without_maps

    given = options.data or config.data.val
    if given is None:
        raise ConfigError("there are no label maps to test on: give --data val/, or set data.val in the config")
    shards = open_shards(as_pattern(given), cache=cache_of(config.data, options.run))
    refuse_without_maps(shards, config.data)
    return given, shards


def _table(result: dict[str, Any]) -> str:
    """IoU of each class, then the means, in percent."""
    width = max(len(name) for name in (*result["class_iou"], "pixel accuracy"))
    lines = [f"{name:<{width}}  {100 * share:6.2f}" for name, share in result["class_iou"].items()]
    lines += [f"{'mIoU':<{width}}  {100 * result['miou']:6.2f} %  of {result['classes']} classes"]
    lines += [f"{'pixel accuracy':<{width}}  {100 * result['pixel_accuracy']:6.2f} %"]
    lines += [f"{'images':<{width}}  {result['val_images']:6d}"]
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])
