"""What the step asks of an objective."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from masking.mask import Mask
from pretrain.backbones.base import Backbone
from pretrain.types import Features, Losses, Target


class Objective(Protocol):
    """An nn.Module that owns its decoder, heads and mask token."""

    checkpointing: bool  # recompute the decoder's blocks in backward

    def target(self, images: Tensor) -> Target:
        """What must be predicted of images (B, C, H, W) uint8; made without gradient, before the mask is drawn."""
        ...

    def __call__(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """Losses, name -> (B,) float32, and the encoder's features of the visible patches."""
        ...
