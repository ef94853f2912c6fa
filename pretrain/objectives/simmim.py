"""SimMIM: mask tokens go through the encoder, and one linear layer reads hidden pixels off its last features (Xie et
al., "SimMIM: a Simple Framework for Masked Image Modeling", sections 3.1 to 3.4).

The encoder sees the whole grid, so there is no decoder and nothing to throw away but the head and the mask token.
Visible patches alone are projected and hidden rows alone reach head and loss; the loss is that of the plain formulation
(tests/objectives has it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import repeat
from torch import Tensor, nn

from masking.mask import Mask, gather_rows
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes
from pretrain.backbones.layers import initialize
from pretrain.backbones.treatment import Treatment
from pretrain.backbones.vit import ViT
from pretrain.errors import ConfigError
from pretrain.objectives.mask_tokens import MaskTokenObjective
from pretrain.objectives.mto_r import MtoR, Treated
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

    def treated(self, backbone: BackboneConfig) -> Treated:
        """The encoder's blocks. Raises ConfigError for an encoder that takes no treatment."""
        if "treatment" not in backbone.answers:
            raise ConfigError(
                f"mto acts where mask tokens are, in SimMIM the encoder, and {type(backbone).__name__} has its own "
                "rule of who sees whom; use a ViTConfig, or objective=PixelMAEConfig, or set mto=none"
            )
        width, depth, _ = backbone.dimensions()
        return Treated(depth, width)


class SimMIM(MaskTokenObjective):
    """Mask token, head, target and loss of SimMIM."""

    def __init__(self, config: SimMIMConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # there is no decoder; the backbone has its own
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.width).normal_(std=0.02))
        self.head = nn.Linear(backbone.width, backbone.in_chans * backbone.patch_size**2)
        self.pixels = PixelTarget(backbone, config.norm_pixels)
        self.mto: MtoR | None = None
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
        uint8 (section 3.4), and the features of visible patches. Every hidden patch is predicted; rng is for MTO-R
        alone, whose losses come beside."""
        treatment = None if self.mto is None else self.mto.treatment(mask, mask.ids_mask, backbone.num_prefix, rng)
        visible, hidden = self._encode(backbone, images, mask, treatment)
        loss = (self.head(hidden) - self.pixels(images, mask.ids_mask)).abs().mean((1, 2))
        added = {} if self.mto is None else self.mto.losses(treatment)
        return {"pixel": loss, **added}, visible

    @torch.no_grad()
    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Visible pixels as they are and predictions for all hidden patches, (B, C, H, W) float32 in 0..1; see
        `PixelTarget.paste`."""
        treatment = None if self.mto is None else self.mto.treatment(mask, mask.ids_mask, backbone.num_prefix)
        return self.pixels.paste(images, mask, self.head(self._encode(backbone, images, mask, treatment)[1]))

    def token(self) -> nn.Parameter:
        """The encoder's."""
        return self.mask_token

    def treated_blocks(self, backbone: Backbone) -> nn.ModuleList | None:
        """The encoder's, where it is a ViT."""
        return backbone.blocks if isinstance(backbone, ViT) else None

    def watch(self, backbone: Backbone, images: Tensor, mask: Mask, treatment: Treatment) -> Tensor:
        """Takes images through the encoder; visible patches as they are embedded."""
        self._encode(backbone, images, mask, treatment)
        return backbone.embed(images, mask.ids_keep)

    def _encode(
        self, backbone: Backbone, images: Tensor, mask: Mask, treatment: Treatment | None
    ) -> tuple[Features, Tensor]:
        """Features of visible patches, and those of hidden ones (B, M, D). The encoder gets the whole grid: in raster
        order, so that any may read it, causal ones too; for a treatment, which has them apart, hidden ones last."""
        embedded = backbone.embed(images, mask.ids_keep)
        if treatment is None:
            features = backbone(mask.fill(embedded, self.mask_token))
            seen = torch.cat([features.prefix, mask.keep(features.tokens)], dim=1)
            return Features(seen, features.num_prefix), gather_rows(features.tokens, mask.ids_mask)
        assert isinstance(backbone, ViT)  # `treated` refuses others
        hidden = repeat(self.mask_token, "1 1 d -> b m d", b=len(images), m=mask.num_hidden).to(embedded.dtype)
        tokens = torch.cat([embedded, hidden], dim=1)
        features = backbone(tokens, torch.cat([mask.ids_keep, mask.ids_mask], dim=1), treatment=treatment)
        sequence, num_seen = features.sequence, treatment.num_seen
        return Features(sequence[:, :num_seen], features.num_prefix), sequence[:, num_seen:]
