"""What a config, the step and the pictures ask of an objective. Letters as in pretrain/types.py."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from masking.mask import Mask
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import Sizes
from pretrain.types import Features, Losses, Target


class Objective(Protocol):
    """An nn.Module that owns its decoder, heads and mask token."""

    checkpointing: bool  # recompute the blocks of a decoder in backward

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

    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Images (B, C, H, W) uint8 with predictions in place of hidden patches: (B, C, H, W) float32 in 0..1."""
        ...


class ObjectiveConfig(Protocol):
    """A frozen dataclass beside its objective; its fields are its settings."""

    @property
    def chooses(self) -> bool:
        """Whether only some of the hidden patches are predicted: the step then hands over noise to choose by."""
        ...

    @property
    def gives_guidance(self) -> bool:
        """Whether targets hold an importance per patch, for mask strategies that ask for it."""
        ...

    @property
    def asks(self) -> str | None:
        """What it needs among the `answers` of its encoder's config; None: nothing beyond what all encoders do."""
        ...

    def check(self) -> None:
        """Raises ConfigError for the first setting, or combination, that cannot be meant."""
        ...

    def build(self, backbone: Backbone) -> Objective:
        """The objective for images as backbone sees them, with fresh weights."""
        ...

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward through all that is trained, encoder included, patch projection not."""
        ...
