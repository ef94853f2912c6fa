"""One variant: trained by the product's own commands, or found trained, and what it shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.claims.one_run import ROOT, lacuna
from benchmarks.illama_variants.plans import SAME, VARIANTS, Variant
from pretrain.data.evaluation_batches import evaluation_batches
from pretrain.data.shards import open_shards
from pretrain.engine.load import load_backbone
from pretrain.objectives.supervised import soft_cross_entropy
from pretrain.tracking.charts import Point
from pretrain.tracking.cutoff import cutoff_step, jump_at, words
from pretrain.tracking.run_data import RunData, load_run
from pretrain.types import Labels

_POINTS = 100  # of the curve that is kept


def trained(name: str, runs: Path, share: float, data: Sequence[str]) -> Path:
    """The run's directory below runs, once that share of its steps is made."""
    variant, run_dir = VARIANTS[name], runs / name
    steps = max(60, round(share * variant.steps))  # fewer leave no room for two means around the cutoff
    if not any((run_dir / "ckpt").glob(f"{steps:010d}-*")):
        places = (f"name={name}", f"runs_dir={runs}", f"steps={steps}")
        lacuna(["train", str(ROOT / variant.config), *places, *data, *SAME, *variant.settings])
    return run_dir


def measured(variant: Variant, run_dir: Path, max_images: int) -> dict[str, Any]:
    """Losses, the jump, what features and head are worth against those of the untrained encoder, ranks of attention."""
    run = load_run(run_dir)
    shown, maps = _evaluated(variant, run, max_images)
    loss, alpha = run.curve("loss"), run.curve("alpha")
    cutoff = cutoff_step(alpha)
    jump = None if cutoff is None else jump_at(loss, cutoff)
    last = [value for _, value in loss[-max(1, len(loss) // 20) :]]
    return {
        "title": variant.title,
        "config": variant.config,
        "settings": list(variant.settings),
        "steps": run.last_step,
        "crops": run.steps[-1]["samples"],
        "train_s": run.training_s(),
        "loss": {"first": loss[0][1], "last": fmean(last), "last_is_mean_of": len(last)},
        "jump": None if jump is None else {**dataclasses.asdict(jump), "share": jump.share, "clear": jump.is_clear},
        "said": None if jump is None else words(jump, (1.0, alpha[-1][1])),
        "same_weights": None if cutoff is None else _at_once(run_dir, cutoff - 1, alpha[-1][1], max_images),
        "features": shown,
        "attention": [{"rank": fmean(block["rank"]), "mask_alone": block["mask_rank"]} for block in maps["blocks"]],
        "baselines": maps["baselines"],
        "curve": _means(loss),
    }


def _evaluated(variant: Variant, run: RunData, max_images: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """({"trained", "untrained"}: scores, maps of attention), of the last step; measured unless that is done."""
    directory = run.run_dir
    shown, ranks = directory / f"evaluate-step-{run.last_step:07d}.json", directory / "attention-rank.json"
    if not shown.exists():
        limit = ["--max-images", str(max_images)]
        lacuna(["evaluate", str(directory), "--untrained", "--methods", variant.methods, *limit])
    if not ranks.exists():
        lacuna(["evaluate", str(directory), "--attention"])
    scores = json.loads(shown.read_text())["results"].values()
    (maps,) = json.loads(ranks.read_text())["results"].values()
    return dict(zip(("trained", "untrained"), scores, strict=True)), maps


def _at_once(run_dir: Path, step: int, end: float, max_images: int) -> list[dict[str, float]] | None:
    """What a classifier makes of its training images with the weights of step, at alpha 1 and at end: the jump without
    the noise of batches. None for other objectives, and where no checkpoint of that step is kept."""
    if not any((run_dir / "ckpt").glob(f"{step:010d}-*")):
        return None
    loaded = load_backbone(run_dir, "model", step)
    if loaded.objective is None:
        return None
    shards = open_shards(loaded.config.data.train)
    batches = evaluation_batches(shards, loaded.config.data, batch_size=64, max_images=max_images)
    found = []
    for alpha in (1.0, end):
        loaded.backbone.get_buffer("alpha").fill_(alpha)
        scored = [(loaded.objective.classify(loaded.backbone, images), labels) for images, labels in batches]
        scores, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
        loss = soft_cross_entropy(scores, Labels.single(labels), smoothing=0.0).mean()
        right = (scores.argmax(1) == labels).float().mean()
        found.append({"alpha": alpha, "loss": float(loss), "right": float(right), "images": len(labels)})
    return found


def _means(points: Sequence[Point]) -> list[list[float]]:
    """About _POINTS means of neighbours, each at the last of its steps."""
    size = max(1, len(points) // _POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [[group[-1][0], round(fmean(value for _, value in group), 4)] for group in groups]
