"""What a config, the step and the pictures ask of an objective. Letters as in pretrain/types.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from masking.mask import Grid, Mask
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes
from pretrain.types import Features, Labels, Losses, Target


class Objective(nn.Module):
    """What is learned: it owns its decoder, heads and mask token. What it leaves alone is as below."""

    checkpointing: bool  # recompute the blocks of a decoder in backward
    measured: frozenset[str] = frozenset()  # of the losses, those that are followed and not minimised

    if TYPE_CHECKING:

        def __call__(
            self,
            backbone: Backbone,
            images: Tensor,
            mask: Mask,
            target: Target,
            rng: torch.Generator | Tensor | None = None,
        ) -> tuple[Losses, Features]:
            """Losses, name -> (B,) float32, and the encoder's features of the visible patches."""

    def target(self, images: Tensor, labels: Labels | None = None) -> Target:
        """What must be predicted of images (B, C, H, W) uint8; made without gradient, before the mask is drawn. Nothing
        where the loss reads pixels of hidden patches, which are known only once the mask is."""
        return Target()

    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Images (B, C, H, W) uint8 with predictions in place of hidden patches: (B, C, H, W) float32 in 0..1. Asked
        for where the config says that it reconstructs."""
        raise NotImplementedError(f"{type(self).__name__} reconstructs no images")

    def show(self, backbone: Backbone, images: Tensor) -> Tensor | None:
        """What it makes of images (B, C, H, W) uint8, seen whole, for a picture of both: (B, C, H, W) float32 in 0..1.
        None where it makes no images of whole ones."""
        return None

    def minimised(self, losses: Losses) -> Losses:
        """Those of losses that training lowers; the others are `measured`, and only logged."""
        return {name: values for name, values in losses.items() if name not in self.measured}

    def inspect(self, backbone: Backbone, images: Tensor, mask: Mask, target: Target) -> dict[str, Any]:
        """What is worth following as training goes on beside the loss, as JSON values by name: a line of
        inspections.jsonl. Asked without gradient, of the images that pictures show."""
        return {}

    def classify(self, backbone: Backbone, images: Tensor) -> Tensor:
        """What each class scores for images (B, C, H, W) uint8, seen whole: (B, num_classes) float32. Asked for where
        the config has classes."""
        raise NotImplementedError(f"{type(self).__name__} decides among no classes")

    def segment(self, backbone: Backbone, images: Tensor) -> Tensor:
        """What each class scores at every pixel of images (B, C, H, W) uint8, seen whole: (B, pixel_classes, H, W)
        float32. Asked for where the config has classes of pixels."""
        raise NotImplementedError(f"{type(self).__name__} segments no images")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, beside norms, biases and tokens, that weight decay must leave alone."""
        return set()

    def moving(self) -> set[str]:
        """Names of float32 buffers that change as training goes on and no optimizer updates."""
        return set()

    def at_step(self, step: int, total_steps: int) -> dict[str, float]:
        """Sets what depends on the step about to be trained, as `Backbone.at_step` does."""
        return {}

    def after_update(self, backbone: Backbone, skipped: Tensor) -> None:
        """Follows the update just made; skipped () float32 is 1 where there was none. Nothing waits for the device."""


class ObjectiveConfig(Protocol):
    """A frozen dataclass beside its objective; its fields are its settings."""

    @property
    def least_hidden(self) -> int | None:
        """How many patches of an image a mask must hide at least; None: it takes no mask."""
        ...

    @property
    def reconstructs(self) -> bool:
        """Whether it can put predictions in place of hidden patches, for pictures."""
        ...

    @property
    def chooses(self) -> bool:
        """Whether only some of the hidden patches are predicted: the step then hands over noise to choose by."""
        ...

    @property
    def gives_guidance(self) -> bool:
        """Whether targets hold an importance per patch, for mask strategies that ask for it."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Among how many classes it decides: every sample needs a label from 0 to one less. None: it uses no labels."""
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


@runtime_checkable
class Drawing(Protocol):
    """The config of an objective that draws more than a number a patch: ratios, classes to drop, diffusion."""

    def num_draws(self, backbone: BackboneConfig, grid: Grid) -> int:
        """How many uniform numbers of each image a forward is handed."""
        ...


@runtime_checkable
class NeedsNoneVisible(Protocol):
    """The config of an objective whose encoder has something to see where every patch is hidden: a ratio may say so."""

    @property
    def least_visible(self) -> int:
        """How many patches of an image must stay visible at least: 0."""
        ...


@runtime_checkable
class Segmenting(Protocol):
    """The config of an objective that decides about every pixel: its labels are maps, `data.maps`."""

    @property
    def pixel_classes(self) -> int:
        """Among how many classes."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as the run begins with it, and is no part of what the optimizer holds."""
        ...


@runtime_checkable
class Taught(Protocol):
    """The config of an objective whose targets cost arithmetic of their own: a teacher sees the images first."""

    @property
    def follows_student(self) -> bool:
        """Whether the teacher is made of the student's weights, which each process must then have whole."""
        ...

    def target_flops(self, sizes: Sizes) -> float:
        """FLOPs of making one image's target; there is no backward."""
        ...
