"""Next-patch prediction: each patch behind a random prefix is predicted from those before it (AIM: El-Nouby et al.,
"Scalable Pre-training of Large Autoregressive Image Models", section 3). The prefix sees itself in both directions, so
that the encoder can be fine-tuned without a mask.

With mask_inputs the patches that the run's mask hides are mask tokens in the input, as MEAP does in language (Zhuang et
al., "Mask-Enhanced Autoregressive Prediction", section 3); they are predicted all the same, from the patch before them.
Without, the input is whole, as in AIM, and the mask says only which patches pictures show as predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masking.mask import Mask, gather_rows
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import Sizes
from pretrain.backbones.layers import NORM_EPS, Mlp, initialize, run_block
from pretrain.objectives.base import Objective
from pretrain.objectives.pixel_target import PixelTarget
from pretrain.ranges import AT_LEAST_0, check_ranges
from pretrain.types import Features, Losses, Target

if TYPE_CHECKING:
    from pretrain.backbones.illama import Illama


@dataclass(frozen=True)
class NextPatchConfig:
    """Pixels of the next patch in raster order, by their squared error."""

    norm_pixels: bool = True  # targets are each patch's pixels less their mean, over their standard deviation
    mask_inputs: bool = True  # hidden patches are mask tokens in the input (MEAP); off: the whole image goes in (AIM)
    head_depth: int = 12  # residual MLPs of the encoder's width before the linear layer, each token by itself

    chooses: ClassVar[bool] = True  # the length of the prefix, from the step's noise
    least_hidden: ClassVar[int | None] = 1
    reconstructs: ClassVar[bool] = True
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = "prefix"

    def check(self) -> None:
        """Raises ConfigError for a head that cannot be built."""
        check_ranges(vars(self), {"head_depth": AT_LEAST_0}, "objective.")

    def build(self, backbone: Backbone) -> NextPatch:
        """The objective for images as backbone sees them, with fresh weights."""
        return NextPatch(self, backbone)

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on all patches, with a second attention for the prefix, and the
        head on all but the last."""
        tokens, rows = sizes.num_patches + sizes.num_prefix, sizes.num_patches - 1
        prefix = 4 * sizes.depth * tokens**2 * sizes.width
        head = rows * (16 * self.head_depth * sizes.width**2 + 2 * sizes.width * sizes.num_values)
        return sizes.encoder_flops(sizes.num_patches) + prefix + head


class _Residual(nn.Module):
    """x plus an MLP of its norm, each token by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class NextPatch(Objective):
    """Mask token, head, target and loss."""

    def __init__(self, config: NextPatchConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        width = backbone.width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02)) if config.mask_inputs else None
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(config.head_depth))
        self.head = nn.Linear(width, backbone.in_chans * backbone.patch_size**2)
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
        """{"pixel": (B,) float32}, the squared error averaged over the patches of images (B, C, H, W) uint8 that are
        behind the prefix, and the features of visible patches. rng chooses the prefix: see `prefix_lengths`."""
        lengths = prefix_lengths(mask, rng)
        features = self._encode(backbone, images, mask, lengths)
        ids = torch.arange(1, mask.hidden.shape[1], device=images.device).expand(len(images), -1)
        errors = (self._head(features.tokens[:, :-1]) - self.pixels(images, ids)).square().mean(2)
        behind = (ids >= lengths[:, None]).float()
        visible = torch.cat([features.prefix, mask.keep(features.tokens)], dim=1)
        return {"pixel": (errors * behind).sum(1) / behind.sum(1)}, Features(visible, features.num_prefix)

    @torch.no_grad()
    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Visible pixels as they are and for each hidden patch what the patches before it predict, (B, C, H, W) float32
        in 0..1; the first patch of an image has none before it and is predicted as zeros. See `PixelTarget.paste`."""
        lengths = torch.ones(len(images), dtype=torch.int64, device=images.device)
        features = self._encode(backbone, images, mask, lengths)
        predicted = F.pad(self._head(features.tokens[:, :-1]), (0, 0, 1, 0))
        return self.pixels.paste(images, mask, gather_rows(predicted, mask.ids_mask))

    def _encode(self, backbone: Backbone, images: Tensor, mask: Mask, lengths: Tensor) -> Features:
        """Features of the whole grid, the first lengths (B,) of each image seeing each other."""
        if self.mask_token is None:
            tokens = backbone.embed(images)
        else:
            tokens = mask.fill(backbone.embed(images, mask.ids_keep), self.mask_token)
        encoder = cast("Illama", backbone)  # checks.py: its config answers a prefix
        return encoder(tokens, prefix_lengths=lengths)

    def _head(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = run_block(block, tokens, checkpointing=self.checkpointing)
        prediction: Tensor = self.head(tokens)
        return prediction


def prefix_lengths(mask: Mask, rng: torch.Generator | Tensor | None) -> Tensor:
    """How many first patches of each image are its prefix, (B,) int64, uniform in 1 to N - 1 (AIM, section 3.2). rng is
    a generator, or noise (B, N) float in 0..1 whose first column is used; None makes it half of the patches."""
    batch, num_patches = mask.hidden.shape
    if rng is None:
        return torch.full((batch,), max(1, num_patches // 2), device=mask.hidden.device)
    if not isinstance(rng, Tensor):
        rng = torch.rand(mask.hidden.shape, generator=rng, device=mask.hidden.device)
    return (1 + rng[:, 0] * (num_patches - 1)).long().clamp(max=num_patches - 1)
