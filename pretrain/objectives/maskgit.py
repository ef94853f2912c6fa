"""MaskGIT: a bidirectional transformer over image tokens, of which a random share is hidden (Chang et al., "MaskGIT:
Masked Generative Image Transformer", section 3).

Every image draws its own share, cos(pi / 2 * u) in the paper, so the objective hides tokens itself: all positions go
through the encoder, hidden ones as the mask's id. With `replace_ratio` some visible tokens are wrong, as a sampler's
own may be, and visible positions are predicted as well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from masking.mask import Grid, Mask
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes
from pretrain.objectives.token_model import (
    Canvas,
    Memory,
    TokenHead,
    TokenModel,
    drawn,
    head_flops,
    mean_where,
    num_replace_draws,
    replaced,
    token_losses,
    told,
)  # fmt: skip
from pretrain.ranges import BELOW_1, Range, check_ranges
from pretrain.tokenizers.token_vit import TokenViT
from pretrain.types import Features, Losses, Target

_RANGES: dict[str, Range] = {"label_smoothing": BELOW_1, "replace_ratio": BELOW_1}


@dataclass(frozen=True)
class MaskGITConfig:
    """Hidden tokens of a discrete tokenizer, by the encoder itself."""

    ratio: Literal["cosine", "arccos"] = "cosine"  # law of the hidden share; both have the mean 0.637
    label_smoothing: float = 0.1  # share of each target that is spread over all codes
    replace_ratio: float = 0.0  # share of the visible tokens that are replaced by random ones, and then predicted too

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = None  # it hides tokens itself
    reconstructs: ClassVar[bool] = False
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = "codes"

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "objective.")

    def build(self, backbone: Backbone) -> MaskGIT:
        """The objective for tokens as backbone embeds them, with fresh weights."""
        return MaskGIT(self, backbone)

    def num_draws(self, backbone: BackboneConfig, grid: Grid) -> int:
        """The share, the class's drop, an order of the positions, and what is replaced."""
        return 2 + grid.num_patches + num_replace_draws(self.replace_ratio, grid)

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: encoder and head on all tokens."""
        return sizes.encoder_flops(sizes.num_patches) + head_flops(sizes.num_patches, sizes.width, sizes.num_codes)


class MaskGIT(TokenModel):
    """Head and loss."""

    measured = frozenset({"accuracy"})

    def __init__(self, config: MaskGITConfig, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.checkpointing = False  # there is no decoder; the backbone has its own
        self.config = config
        assert isinstance(backbone, TokenViT)
        self.head = TokenHead(backbone.width, backbone.token_embed.num_embeddings)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"token": (B,) float32}, the smoothed cross-entropy averaged over the hidden tokens of each image, the share
        of them that is guessed right, and the features of all positions. mask hides nothing; rng is (B, num_draws)
        uniform numbers, or draws them."""
        assert isinstance(backbone, TokenViT) and target.value is not None and backbone.num_codes is not None
        ids, config = target.value, self.config
        numbers = drawn(rng, len(ids), self._num_draws(backbone), ids.device)
        hidden = hidden_by(numbers[:, 0], numbers[:, 2 : 2 + ids.shape[1]], config.ratio)
        seen = ids
        if config.replace_ratio:
            seen = replaced(ids, ~hidden, config.replace_ratio, numbers[:, 2 + ids.shape[1] :], backbone.num_codes)
        canvas = Canvas(
            torch.where(hidden, backbone.mask_id, seen), ~hidden, told(backbone, target, numbers[:, 1])
        )
        features = backbone(backbone.embed_tokens(canvas.tokens), prefix=canvas.prefix)
        logits = self.logits(backbone, features.tokens)
        each = token_losses(logits, ids, config.label_smoothing)
        losses = {"token": mean_where(each, hidden)}
        if config.replace_ratio:
            losses["restore"] = mean_where(each, ~hidden)
        right = (logits.detach().argmax(-1) == ids).float()
        return {**losses, "accuracy": mean_where(right, hidden)}, features

    @torch.no_grad()
    def look(self, backbone: TokenViT, canvas: Canvas, memory: Memory | None, num_targets: int = 0) -> Tensor:
        """Logits (B, N, K) float32 of every position."""
        return self.logits(backbone, self.features(backbone, canvas.tokens, canvas.prefix, memory))

    def features(self, backbone: TokenViT, ids: Tensor, prefix: Tensor, memory: Memory | None = None) -> Tensor:
        """What the head reads of every position, (B, N, D), in a full pass over ids (B, N)."""
        kept = None if memory is None else memory.encoder.record()
        return backbone(backbone.embed_tokens(ids), prefix=prefix, memory=kept).tokens

    @torch.no_grad()
    def look_again(
        self, backbone: TokenViT, canvas: Canvas, memory: Memory, targets: Tensor, num_filled: int
    ) -> Tensor:
        """Logits (B, n, K) float32 of the targets, the class token being asked anew with them."""
        kept = memory.encoder.refresh(backbone.slots(targets))
        tokens = backbone.embed_tokens(canvas.tokens.gather(1, targets))
        return self.logits(backbone, backbone(tokens, targets, prefix=canvas.prefix, memory=kept).tokens)

    def logits(self, backbone: TokenViT, features: Tensor) -> Tensor:
        """(B, n, K) float32 of features (B, n, D)."""
        assert backbone.num_codes is not None
        logits: Tensor = self.head(features, backbone.token_embed, backbone.num_codes)
        return logits

    def _num_draws(self, backbone: TokenViT) -> int:
        return 2 + backbone.grid.num_patches + num_replace_draws(self.config.replace_ratio, backbone.grid)


def hidden_by(numbers: Tensor, order: Tensor, law: Literal["cosine", "arccos"]) -> Tensor:
    """Which tokens are hidden, (B, N) bool: at least one in each image, a share cos(pi / 2 * u) or arccos(u) / (pi / 2)
    of them, rounded up, for u = numbers (B,); those of the least order (B, N)."""
    share = (numbers * (math.pi / 2)).cos() if law == "cosine" else numbers.acos() / (math.pi / 2)
    count = (share * order.shape[1]).ceil().clamp(1, order.shape[1])
    return order.argsort(1).argsort(1) < count[:, None]
