"""The training of a tokenizer: images through tokens and back, as near as they come.

The recipe is MaskGIT's (Chang et al., "MaskGIT: Masked Generative Image Transformer", section 3.1) without what needs
other networks: in place of its perceptual term, differences between neighbouring pixels are compared at three sizes of
the image, and there is no discriminator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from masking.mask import Grid, Mask
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes
from pretrain.objectives.base import Objective
from pretrain.ranges import AT_LEAST_0, Range, check_ranges
from pretrain.tokenizers.trained import ConvTokenizer, ConvTokenizerConfig
from pretrain.types import Features, Losses, Target

_SCALES = (1, 2, 4)
_RANGES: dict[str, Range] = {"gradient": AT_LEAST_0}


@dataclass(frozen=True)
class ReconstructionConfig:
    """The image itself, from its tokens."""

    gradient: float = 0.1  # weight of differences between neighbouring pixels, at full, half and quarter size

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = None
    reconstructs: ClassVar[bool] = False
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = "tokenizer"

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "objective.")

    def build(self, backbone: Backbone) -> Reconstruction:
        """The objective, which has no weights: decoder and quantiser belong to the tokenizer."""
        return Reconstruction(self)

    def num_draws(self, backbone: BackboneConfig, grid: Grid) -> int:
        """A number for each of a token, where tokens are sampled."""
        assert isinstance(backbone, ConvTokenizerConfig)  # checks.py
        return grid.num_patches * backbone.quantiser.num_values * backbone.quantiser.sampled

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward; the last convolution is as large as the first."""
        return sizes.encoder_flops(sizes.num_patches) + sizes.embed_flops


class Reconstruction(Objective):
    """The losses."""

    measured = frozenset({"psnr"})

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # the decoder is the tokenizer's, which has its own

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"l1", "gradient", "psnr", and the quantiser's own: (B,) float32} of images (B, C, H, W) uint8, and what the
        decoder reads as features. rng is the noise that draws tokens, (B, N * num_values) uniform; mask hides nothing.
        """
        assert isinstance(backbone, ConvTokenizer) and not isinstance(rng, torch.Generator)
        found = backbone.quantise(images, rng)
        made, want = backbone.decode(found.values, backbone.grid), images.float() / 255
        losses = {"l1": (made - want).abs().mean((1, 2, 3))}
        if self.config.gradient:
            losses["gradient"] = self.config.gradient * edge_distance(made, want)
        return {**losses, **found.losses, "psnr": psnr(made.detach(), want)}, Features(found.values, 0)

    def after_update(self, backbone: Backbone, skipped: Tensor) -> None:
        """The tokenizer's quantiser follows the update, where it has codes that are averages."""
        assert isinstance(backbone, ConvTokenizer)
        backbone.quantiser.after_update(skipped)

    @torch.no_grad()
    def show(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 through tokens and back: (B, C, H, W) float32 in 0..1."""
        assert isinstance(backbone, ConvTokenizer)
        return backbone.images(backbone.tokens(images), backbone.grid)

    def inspect(self, backbone: Backbone, images: Tensor, mask: Mask, target: Target) -> dict[str, Any]:
        """{"tokens": figures} of images (B, C, H, W) uint8: the mean PSNR, dB; and how many codes they use of how many
        so few images could, or the deviation of their values, one over which is the scale for whoever generates
        them."""
        assert isinstance(backbone, ConvTokenizer)
        tokens = backbone.tokens(images)
        found = {"psnr": float(psnr(backbone.images(tokens, backbone.grid), images.float() / 255).mean())}
        if backbone.num_codes is None:
            return {"tokens": {**found, "std": float(tokens.std())}}
        could = min(backbone.num_codes, tokens.numel())
        return {"tokens": {**found, "codes_used": tokens.unique().numel(), "codes": could}}


def edge_distance(made: Tensor, want: Tensor) -> Tensor:
    """The mean distance between differences of neighbouring pixels, added over both directions and over images at full,
    half and quarter size: (B,) float32 for images (B, C, H, W) in 0..1."""
    parts = [(mine - theirs).abs().mean((1, 2, 3)) for mine, theirs in zip(_edges(made), _edges(want), strict=True)]
    return torch.stack(parts).sum(0)


def psnr(made: Tensor, want: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of images (B, C, H, W) in 0..1, dB: (B,) float32, at most 100."""
    error = (made.float().clamp(0, 1) - want).square().mean((1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def _edges(images: Tensor) -> Iterator[Tensor]:
    for scale in _SCALES:
        if min(images.shape[-2:]) >= 2 * scale:  # an image of a few pixels has fewer sizes
            smaller = F.avg_pool2d(images, scale) if scale > 1 else images
            yield smaller.diff(dim=2)
            yield smaller.diff(dim=3)
