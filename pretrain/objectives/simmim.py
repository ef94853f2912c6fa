"""SimMIM: mask tokens go through the encoder, and one linear layer reads hidden pixels off its last features (Xie et
al., "SimMIM: a Simple Framework for Masked Image Modeling", sections 3.1 to 3.4).

The encoder sees the whole grid, so there is no decoder and nothing to throw away but the head and the mask token.
Visible patches alone are projected and hidden rows alone reach head and loss; the loss is that of the plain formulation
(tests/objectives has it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from masking.mask import Mask, gather_rows
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import Sizes
from pretrain.backbones.layers import initialize
from pretrain.objectives.base import Objective
from pretrain.objectives.pixel_target import PixelTarget
from pretrain.types import Features, Losses, Target


@dataclass(frozen=True)
class SimMIMConfig:
    """Pixels of hidden patches from a linear head, by their absolute error."""

    norm_pixels: bool = False  # targets are each patch's pixels less their mean, over their standard deviation

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = 1
    reconstructs: ClassVar[bool] = True
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = None

    def check(self) -> None:
        """Nothing: no setting can be wrong by itself."""

    def build(self, backbone: Backbone) -> SimMIM:
        """The objective for images as backbone sees them, with fresh weights."""
        return SimMIM(self, backbone)

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on all patches, the head on hidden ones."""
        head = 2 * sizes.num_hidden * sizes.width * sizes.num_values
        return sizes.encoder_flops(sizes.num_patches) + head


class SimMIM(Objective):
    """Mask token, head, target and loss of SimMIM."""

    def __init__(self, config: SimMIMConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # there is no decoder; the backbone has its own
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.width).normal_(std=0.02))
        self.head = nn.Linear(backbone.width, backbone.in_chans * backbone.patch_size**2)
        self.pixels = PixelTarget(backbone, config.norm_pixels)
        initialize(self)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"pixel": (B,) float32}, the absolute error averaged over the values of hidden patches of images (B, C, H, W)
        uint8 (section 3.4), and the features of visible patches. Every hidden patch is predicted; rng is not used."""
        features = self._encode(backbone, images, mask)
        loss = (self._predict(features, mask) - self.pixels(images, mask.ids_mask)).abs().mean((1, 2))
        visible = torch.cat([features.prefix, mask.keep(features.tokens)], dim=1)
        return {"pixel": loss}, Features(visible, features.num_prefix)

    @torch.no_grad()
    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Visible pixels as they are and predictions for all hidden patches, (B, C, H, W) float32 in 0..1; see
        `PixelTarget.paste`."""
        return self.pixels.paste(images, mask, self._predict(self._encode(backbone, images, mask), mask))

    def _encode(self, backbone: Backbone, images: Tensor, mask: Mask) -> Features:
        """Features of the whole grid, in raster order: any backbone may read it, causal ones too."""
        return backbone(mask.fill(backbone.embed(images, mask.ids_keep), self.mask_token))

    def _predict(self, features: Features, mask: Mask) -> Tensor:
        """Pixels of hidden patches, (B, M, P), in the space of the target."""
        return self.head(gather_rows(features.tokens, mask.ids_mask))
