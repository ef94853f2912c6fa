"""One optimizer step, from this rank's micro-batches to the update: a pure function of the weights, the samples and the step.

    target -> mask -> engine forward -> weighted loss -> backward, for each micro-batch; then one update at the given rate.

Nothing here waits for the device. A loss is the mean over the valid images of the *global* batch: an image that could not
be used has weight 0 and the others count as if the batch had been that much smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from masking.draw import MaskStrategy, Rows, draw
from masking.mask import Grid, Mask
from masking.rng import prf
from pretrain.types import Batch, Losses

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine


@dataclass(frozen=True)
class Recipe:
    """What a step needs to know beside its batch."""

    strategy: MaskStrategy
    grid: Grid
    seed: int
    batch_size: int  # images in the global batch


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
    for micro, batch in enumerate(batches):
        torch.manual_seed(prf(recipe.seed, "dropout", step, micro, engine.rank))
        images = batch.images.to(engine.device, non_blocking=True)
        weight = batch.weight.to(engine.device, non_blocking=True) / max(num_valid, 1)
        target = engine.model.objective.target(images)
        mask = draw_mask(engine, batch, recipe, step, micro, len(batches), target.guidance)
        losses, _ = engine(images, mask, target)
        shares = {name: (values * weight).sum() for name, values in losses.items()}
        engine.backward(total(shares) * (engine.world * len(batches)))  # undoes DeepSpeed's mean over ranks and micro-batches
        for name, share in shares.items():
            sums[name] = sums.get(name, 0) + share.detach()
    grad_norm, skipped = engine.step(lr)
    return StepResult(sums, grad_norm, skipped)


def draw_mask(
    engine: Engine, batch: Batch, recipe: Recipe, step: int, micro: int, num_micro: int, guidance: Tensor | None
) -> Mask:
    """The masks of a micro-batch: this rank's rows of the draw for the global batch of step."""
    per_micro = len(batch.images)
    first = micro * per_micro * engine.world + engine.rank
    ids = torch.arange(first, first + per_micro * engine.world, engine.world)
    rows = Rows(recipe.batch_size, ids)
    return draw(recipe.strategy, recipe.grid, rows, recipe.seed, step, guidance, engine.device)


def total(shares: Losses) -> Tensor:
    """The scalar that is minimised: the sum of the objective's losses, () float32."""
    return torch.stack(list(shares.values())).sum() if len(shares) > 1 else next(iter(shares.values()))
