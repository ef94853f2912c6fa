"""MAR: hidden tokens are continuous, and drawn by a small diffusion model from what the transformer says of each (Li et
al., "Autoregressive Image Generation without Vector Quantization", sections 3 and 4).

As in MAE the encoder sees visible tokens alone, behind buffer tokens that hold the class; the decoder sees all
positions, a learned vector where they are hidden. Its outputs z are the conditions of the diffusion head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from masking.mask import Grid, Mask, gather_rows
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes
from pretrain.objectives.diffusion import DiffusionConfig, DiffusionHead
from pretrain.objectives.token_decoder import DecodedTokenModel, decoder_flops
from pretrain.objectives.token_model import Canvas, Memory, drawn, told
from pretrain.ranges import AT_LEAST_1, Range, check_ranges
from pretrain.tokenizers.token_vit import TokenViT, TokenViTConfig
from pretrain.types import Features, Labels, Losses, Target

_RANGES: dict[str, Range] = {"decoder_depth": AT_LEAST_1, "decoder_heads": AT_LEAST_1}


@dataclass(frozen=True)
class MARConfig:
    """Hidden tokens of a continuous tokenizer, by a decoder and a diffusion head behind the encoder."""

    decoder_depth: int = 12  # blocks of the decoder, as wide as the encoder
    decoder_heads: int | None = None  # attention heads of the decoder; None: as many as the encoder's
    head: DiffusionConfig = field(default_factory=DiffusionConfig)  # what draws a token

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = 1
    least_visible: ClassVar[int] = 0
    reconstructs: ClassVar[bool] = False
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = "values"

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "objective.")
        self.head.check()

    def build(self, backbone: Backbone) -> MAR:
        """The objective for tokens as backbone embeds them, with fresh weights."""
        return MAR(self, backbone)

    def num_draws(self, backbone: BackboneConfig, grid: Grid) -> int:
        """The class's drop, and for each position, hidden or not, what the diffusion loss draws, and the token where it
        is sampled."""
        assert isinstance(backbone, TokenViTConfig)  # checks.py
        kind = backbone.tokenizer.kind()
        return 1 + grid.num_patches * (self.head.num_draws(kind.num_values) + kind.num_values * kind.sampled)

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: encoder on visible tokens, decoder on all, the head on hidden ones."""
        head = sizes.num_hidden * self.head.forward_flops(sizes.num_values, sizes.width)
        encoder = sizes.encoder_flops(sizes.num_visible)
        return encoder + decoder_flops(sizes, self.decoder_depth, sizes.num_visible) + head


class MAR(DecodedTokenModel):
    """Decoder, diffusion head and loss."""

    def __init__(self, config: MARConfig, backbone: Backbone) -> None:
        assert isinstance(backbone, TokenViT)
        super().__init__(backbone, config.decoder_depth, config.decoder_heads or backbone.num_heads)
        self.config = config
        width = backbone.width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.head_pos_embed = nn.Parameter(torch.empty(1, backbone.grid.num_patches, width).normal_(std=0.02))
        self.head = DiffusionHead(config.head, backbone.num_values, width)

    def target(self, images: Tensor, labels: Labels | None = None) -> Target:
        """Tokens (B, N, num_values) float32 of images (B, C, H, W) uint8, or the moments of those that are sampled."""
        if not self.tokenizer.kind.sampled:
            return super().target(images, labels)
        return Target(value=self.tokenizer.moments(images), labels=labels)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"diffusion": (B,) float32}, the head's loss averaged over the hidden tokens, and the features of the visible
        ones. rng is (B, num_draws) uniform numbers, or draws them."""
        assert isinstance(backbone, TokenViT) and target.value is not None
        each, num = self.config.head.num_draws(backbone.num_values), backbone.grid.num_patches
        sampled = num * backbone.num_values * self.tokenizer.kind.sampled
        numbers = drawn(rng, len(target.value), 1 + num * each + sampled, target.value.device)
        values = self.tokenizer.draw(target.value, numbers[:, -sampled:]) if sampled else target.value
        prefix = told(backbone, target, numbers[:, 0])
        tokens = backbone.embed_tokens(gather_rows(values, mask.ids_keep))
        features = backbone(tokens, mask.ids_keep, prefix=prefix)
        z = gather_rows(self._decode(backbone, features, mask.ids_keep), mask.ids_mask)
        draws = gather_rows(rearrange(numbers[:, 1 : 1 + num * each], "b (n d) -> b n d", n=num), mask.ids_mask)
        flat = [rearrange(part, "b m d -> (b m) d") for part in (gather_rows(values, mask.ids_mask), z, draws)]
        losses = rearrange(self.head.loss(*flat), "(b m) -> b m", b=len(values))
        return {"diffusion": losses.mean(1)}, features

    @torch.no_grad()
    def look(self, backbone: TokenViT, canvas: Canvas, memory: Memory | None, num_targets: int = 0) -> Tensor:
        """Conditions z (B, N, D) of every position; the encoder sees known ones alone."""
        num_known = int(canvas.known[0].sum())
        ids = canvas.known.long().argsort(dim=1, descending=True, stable=True)[:, :num_known]
        tokens = backbone.embed_tokens(gather_rows(canvas.tokens, ids))
        if memory is None:
            return self._decode(backbone, backbone(tokens, ids, prefix=canvas.prefix), ids)
        memory.num_context = backbone.num_prefix + num_known
        features = backbone(tokens, ids, prefix=canvas.prefix, memory=memory.encoder.record(room=num_targets))
        return self._decode(backbone, features, ids, memory)

    @torch.no_grad()
    def look_again(
        self, backbone: TokenViT, canvas: Canvas, memory: Memory, targets: Tensor, num_filled: int
    ) -> Tensor:
        """Conditions z (B, n, D) of the targets: buffer and filled targets through the encoder, whose memory holds the
        context, then buffer and all targets through the decoder; the targets alone where memory keeps the buffer."""
        filled, front, alone = targets[:, :num_filled], backbone.num_prefix, memory.keeps_prefix
        # The encoder's memory is the buffer, the context, and room for targets as they are filled.
        places = memory.num_context - front + torch.arange(num_filled, device=targets.device).expand_as(filled)
        seeing = memory.encoder.refresh(backbone.slots(places, alone=alone), memory.num_context + num_filled)
        tokens = backbone.embed_tokens(gather_rows(canvas.tokens, filled))
        x = self.mask_token.expand(len(targets), targets.shape[1] - num_filled, -1).to(tokens.dtype)
        if num_filled or not alone:
            features = backbone(tokens, filled, prefix=canvas.prefix, memory=seeing, alone=alone)
            x = torch.cat([self.decoder.embed(features.sequence), x], dim=1)
        slots = backbone.slots(targets, alone=alone)
        decoded = self.decoder(x, slots, memory.decoder.refresh(slots))
        return decoded[:, 0 if alone else front :] + self.head_pos_embed[0, targets]

    def no_weight_decay(self) -> set[str]:
        """The head, as in the paper's recipe, and positions."""
        return {f"head.{name}" for name, _ in self.head.named_parameters()}

    def _decode(self, backbone: TokenViT, features: Features, ids: Tensor, memory: Memory | None = None) -> Tensor:
        """Conditions z (B, N, D) from the features of positions ids (B, K)."""
        encoded = self.decoder.embed(features.sequence)
        front, rows = encoded[:, : features.num_prefix], encoded[:, features.num_prefix :]
        hidden = self.mask_token.to(rows.dtype).expand(len(rows), backbone.grid.num_patches, -1)
        full = hidden.scatter(1, ids[..., None].expand_as(rows), rows)
        kept = None if memory is None else memory.decoder.record()
        decoded = self.decoder(torch.cat([front, full], dim=1), memory=kept)
        return decoded[:, features.num_prefix :] + self.head_pos_embed
