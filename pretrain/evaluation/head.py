"""The classifier that a supervised run trains beside its encoder, asked of images it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.backbones.base import Backbone
from pretrain.evaluation.features import Extracted, Gather, evaluating, read
from pretrain.objectives.base import Objective, ObjectiveConfig


@dataclass(frozen=True)
class Head:
    """An objective that decides among classes."""

    objective: Objective
    num_classes: int

    @classmethod
    def of(cls, objective: Objective, config: ObjectiveConfig) -> Head | None:
        """That of objective, which config has built; None where it decides among no classes."""
        return None if config.num_classes is None else cls(objective, config.num_classes)


def predict(
    head: Head,
    backbone: Backbone,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    gather: Gather | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Extracted:
    """The class of every image as the one column of `features`: (n, 1) float32, NaN where scores are not finite; of
    equal scores the lower class. Batches, gather and what stays as it is are as `extract` says."""

    def chosen(images: Tensor) -> Tensor:
        scores = head.objective.classify(backbone, images)
        return torch.where(scores.isfinite().all(1), scores.argmax(1), torch.nan)[:, None]

    with evaluating(head.objective), evaluating(backbone):
        return read(chosen, 1, batches, device, dtype=dtype, gather=gather, on_progress=on_progress)
