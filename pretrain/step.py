"""One optimizer step, from this rank's micro-batches to the update: a function of weights, samples and step alone.

    target -> mask -> engine forward -> weighted loss -> backward, for each micro-batch; then one update.

Nothing here waits for the device. A loss is the mean over the valid images of the *global* batch: an image that could
not be used has weight 0 and the others count as if the batch had been that much smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from masking.draw import MaskStrategy, draw, named_noise
from masking.mask import Grid, Mask
from masking.rng import prf
from pretrain.guidance import guidance_of
from pretrain.mixing import MixedBatches, Mixing
from pretrain.types import Batch, Labels, Losses, Target

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine
    from pretrain.model import PretrainModel


@dataclass(frozen=True)
class Recipe:
    """What a step needs to know beside its batch."""

    strategy: MaskStrategy | None  # None: nothing is hidden
    grid: Grid
    seed: int
    steps_per_epoch: float  # optimizer steps of one pass over the data
    draws: int = 0  # random numbers that the objective uses of each image
    mixing: Mixing | None = None  # None: every image is trained on alone


@dataclass(frozen=True)
class StepResult:
    """Device tensors, read by the tracker every few steps."""

    losses: dict[str, Tensor]  # name -> () float32: this rank's share of the mean over the global batch's valid images
    grad_norm: Tensor  # () float32, before clipping
    skipped: Tensor  # () float32, 1 where loss or gradient was not finite and nothing was updated


def train_step(
    engine: Engine, batches: Sequence[Batch], recipe: Recipe, step: int, num_valid: int, lr: float
) -> StepResult:
    """Trains on this rank's micro-batches of step; num_valid is the number of valid images of the global batch."""
    sums: dict[str, Tensor] = {}
    model = cast("PretrainModel", engine.model)
    objective = model.objective
    inputs = inputs_of(engine, batches, recipe, step)
    for micro, (batch, (images, labels)) in enumerate(zip(batches, inputs, strict=True)):
        torch.manual_seed(prf(recipe.seed, "dropout", step, micro, engine.rank))
        weight = batch.weight.to(engine.device, non_blocking=True) / max(num_valid, 1)
        target = objective.target(images, labels)
        rows = rows_of(engine, batch, micro)
        mask = draw_mask(recipe, rows, step, images, target, batch.boxes)
        losses, _ = engine(images, mask, target, draw_noise(rows, recipe, step, engine.device))
        shares = {name: (values * weight).sum() for name, values in losses.items()}
        undo_mean = engine.world * len(batches)  # DeepSpeed averages over ranks and micro-batches
        engine.backward(total(objective.minimised(shares)) * undo_mean)
        for name, share in shares.items():
            sums[name] = sums.get(name, 0) + share.detach()
    grad_norm, skipped = engine.step(lr)
    objective.after_update(model.backbone, skipped)
    return StepResult(sums, grad_norm, skipped)


def inputs_of(engine: Engine, batches: Sequence[Batch], recipe: Recipe, step: int) -> Iterator[tuple[Tensor, Labels]]:
    """Images (B, C, H, W) uint8 and labels of each micro-batch, on the device, and mixed where the recipe says so."""
    if recipe.mixing is not None:
        mixed = MixedBatches(batches, recipe.mixing, recipe.seed, step, engine.rank, engine.world, engine.device)
        yield from map(mixed.at, range(len(batches)))
        return
    for batch in batches:
        maps = None if batch.maps is None else batch.maps.to(engine.device, non_blocking=True)
        labels = Labels.single(batch.labels.to(engine.device, non_blocking=True), maps)
        yield batch.images.to(engine.device, non_blocking=True), labels


def rows_of(engine: Engine, batch: Batch, micro: int) -> Tensor:
    """Which rows of the global batch this rank's micro-batch number micro holds, (B,) int64: every world-th, from its
    own on."""
    size = len(batch.images)
    first = micro * size * engine.world + engine.rank
    return torch.arange(first, first + size * engine.world, engine.world)


def draw_mask(
    recipe: Recipe, rows: Tensor, step: int, images: Tensor, target: Target, boxes: Tensor | None = None
) -> Mask:
    """The masks of rows (B,) of the global batch in step, on the device of their images (B, C, H, W) uint8."""
    if recipe.strategy is None:
        return Mask.of_nothing(len(images), recipe.grid, images.device)
    strategy = recipe.strategy.at(step / recipe.steps_per_epoch)
    guidance = guidance_of(strategy, recipe.grid, images, target, boxes)
    return draw(strategy, recipe.grid, rows, recipe.seed, step, guidance, device=images.device)


def draw_noise(rows: Tensor, recipe: Recipe, step: int, device: torch.device) -> Tensor | None:
    """(B, draws) uniform noise of rows (B,) for an objective that chooses, drops or diffuses by it."""
    if not recipe.draws:
        return None
    return named_noise(rows, recipe.seed, "predict", step, device=device).uniform(recipe.draws)


def total(shares: Losses) -> Tensor:
    """The scalar that is minimised: the sum of losses, () float32."""
    return torch.stack(list(shares.values())).sum() if len(shares) > 1 else next(iter(shares.values()))
