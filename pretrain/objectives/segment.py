"""Semantic segmentation: the class of every pixel, from an encoder that sees the whole image. Nothing is hidden.

The loss is the cross-entropy of scores brought to the size of the image, over the pixels that have a class, divided by
all pixels, as mmsegmentation does: a labelled pixel weighs the same in every image, and an image without any is 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from masking.mask import Mask
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import Sizes
from pretrain.objectives.base import Objective
from pretrain.objectives.segment_heads import LinearHead, UPerNet, linear_flops, upernet_flops
from pretrain.ranges import AT_LEAST_1, BELOW_1, Range, check_ranges
from pretrain.types import VOID, Features, Labels, Losses, Target

_RANGES: dict[str, Range] = {
    "pixel_classes": (f"from 2 to {VOID}, since {VOID} is no class", lambda v: 2 <= v <= VOID),
    "head_width": AT_LEAST_1,
    "head_drop": BELOW_1,
    "layers": ("three blocks, ascending from 0 on", lambda v: 0 <= v[0] <= v[1] <= v[2]),
}


@dataclass(frozen=True)
class SegmentConfig:
    """The class of every pixel."""

    pixel_classes: int = 150  # how many classes pixels may be of
    head: Literal["linear", "upernet"] = "upernet"  # a linear layer on the last patches, or a pyramid of four blocks
    head_width: int = 256  # channels of the UPerNet
    head_drop: float = 0.0  # probability that a channel of what the last layer reads is left out
    # The coarsest level reads what comes out of the encoder, behind its last norm.
    layers: tuple[int, int, int] | None = None  # blocks that UPerNet's finer levels read; None: at each quarter
    frozen: bool = False  # leave the encoder as it is and train the head alone

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = None
    reconstructs: ClassVar[bool] = False
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None  # of whole images
    asks: ClassVar[str | None] = None

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "objective.")

    def build(self, backbone: Backbone) -> Segment:
        """The objective for images as backbone sees them, with fresh weights; where frozen, backbone is as well."""
        return Segment(self, backbone)

    def taps(self, depth: int) -> tuple[int, ...]:
        """Blocks of an encoder of so many that the head reads beside the encoder's output."""
        if self.head == "linear":
            return ()
        return self.layers or tuple(max(depth * quarter // 4 - 1, 0) for quarter in (1, 2, 3))

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on all patches, and the head."""
        head = (
            linear_flops(sizes, self.pixel_classes)
            if self.head == "linear"
            else upernet_flops(sizes, self.head_width, self.pixel_classes)
        )
        return sizes.encoder_flops(sizes.num_patches) + head


class Segment(Objective):
    """Head and loss."""

    def __init__(self, config: SegmentConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # there is no decoder of blocks; the backbone has its own
        self._taps = config.taps(len(backbone.blocks))
        self.head = (
            LinearHead(backbone.width, config.pixel_classes, config.head_drop)
            if config.head == "linear"
            else UPerNet(backbone.width, config.head_width, config.pixel_classes, config.head_drop)
        )
        if config.frozen:
            backbone.requires_grad_(False)

    def target(self, images: Tensor, labels: Labels | None = None) -> Target:
        """The labels as they are; images (B, C, H, W) are not looked at."""
        return Target(labels=labels)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"pixel": (B,) float32}, the cross-entropy of images (B, C, H, W) uint8 with their maps, and the features of
        all patches. mask hides nothing, and rng is not used."""
        assert target.labels is not None and target.labels.pixels is not None, "data.maps is set: segment_check.py"
        features = self._encode(backbone, images)
        scores = self._score(backbone, features, images)
        return {"pixel": pixel_cross_entropy(scores, target.labels.pixels)}, features

    @torch.no_grad()
    def segment(self, backbone: Backbone, images: Tensor) -> Tensor:
        """What each class scores at every pixel of images (B, C, H, W) uint8: (B, C, H, W) float32."""
        return self._score(backbone, self._encode(backbone, images), images)

    def _encode(self, backbone: Backbone, images: Tensor) -> Features:
        if not self.config.frozen:
            return backbone(backbone.embed(images), layers=self._taps)
        with torch.no_grad():
            backbone.eval()  # whatever the engine has set: nothing is dropped from what is not trained
            return backbone(backbone.embed(images), layers=self._taps)

    def _score(self, backbone: Backbone, features: Features, images: Tensor) -> Tensor:
        tokens = [layer[:, features.num_prefix :] for layer in features.layers] + [features.tokens]
        levels = [rearrange(part, "b (h w) d -> b d h w", h=backbone.grid.height) for part in tokens]
        scores = self.head(levels).float()
        return interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=False)


def pixel_cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of scores (B, C, H, W) float32 with classes (B, H, W) uint8, VOID for none: its sum over the pixels
    that have a class, divided by all, (B,) float32."""
    return cross_entropy(scores, classes.long(), ignore_index=VOID, reduction="none").mean((1, 2))
