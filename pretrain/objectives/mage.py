"""MAGE: masked tokens like MaskGIT, but an encoder from which half of them are dropped, and a decoder (Li et al.,
"MAGE: MAsked Generative Encoder to Unify Representation Learning and Image Synthesis", section 3).

The share that is hidden is one for a whole batch, from a truncated normal law (`TruncatedNormalRatio`). Of the hidden
tokens a fixed number never reaches the encoder; the rest enters as the mask's id. In the decoder every hidden position
holds the encoder's output of the class slot, not a learned vector. To generate, nothing is dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from masking.mask import Grid, Mask, gather_rows
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes
from pretrain.objectives.token_decoder import DecodedTokenModel, decoder_flops
from pretrain.objectives.token_model import (
    Canvas,
    Memory,
    TokenHead,
    drawn,
    head_flops,
    mean_where,
    num_replace_draws,
    replaced,
    token_losses,
    told,
)  # fmt: skip
from pretrain.ranges import AT_LEAST_1, BELOW_1, Range, check_ranges
from pretrain.tokenizers.token_vit import TokenViT
from pretrain.types import Features, Losses, Target

_RANGES: dict[str, Range] = {
    "decoder_depth": AT_LEAST_1,
    "decoder_heads": AT_LEAST_1,
    "drop_ratio": BELOW_1,
    "label_smoothing": BELOW_1,
    "replace_ratio": BELOW_1,
}


@dataclass(frozen=True)
class MAGEConfig:
    """Hidden tokens of a discrete tokenizer, by a decoder behind the encoder that is kept."""

    decoder_depth: int = 8  # blocks of the decoder, as wide as the encoder
    decoder_heads: int = 16  # attention heads of the decoder
    drop_ratio: float = 0.5  # share of all tokens that never reaches the encoder; never more than are hidden
    label_smoothing: float = 0.1  # share of each target that is spread over all codes
    replace_ratio: float = 0.0  # share of the visible tokens that are replaced by random ones, and then predicted too

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = 1
    least_visible: ClassVar[int] = 0
    reconstructs: ClassVar[bool] = True
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = "codes"

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "objective.")

    def build(self, backbone: Backbone) -> MAGE:
        """The objective for tokens as backbone embeds them, with fresh weights."""
        return MAGE(self, backbone)

    def num_draws(self, backbone: BackboneConfig, grid: Grid) -> int:
        """The class's drop, and what is replaced."""
        return 1 + num_replace_draws(self.replace_ratio, grid)

    def num_dropped(self, num_patches: int, num_hidden: int) -> int:
        """How many of the hidden tokens never reach the encoder."""
        return min(num_hidden, math.ceil(num_patches * self.drop_ratio))

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on what is not dropped, decoder and head on all tokens."""
        kept = sizes.num_patches - self.num_dropped(sizes.num_patches, sizes.num_hidden)
        head = head_flops(sizes.num_patches, sizes.width, sizes.num_codes)
        return sizes.encoder_flops(kept) + decoder_flops(sizes, self.decoder_depth, kept) + head


class MAGE(DecodedTokenModel):
    """Decoder, head and loss."""

    measured = frozenset({"accuracy"})

    def __init__(self, config: MAGEConfig, backbone: Backbone) -> None:
        assert isinstance(backbone, TokenViT)
        super().__init__(backbone, config.decoder_depth, config.decoder_heads)
        self.config = config
        self.head = TokenHead(backbone.width, backbone.token_embed.num_embeddings)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"token": (B,) float32}, the smoothed cross-entropy averaged over the hidden tokens, the share of them that
        is guessed right, and the features of visible positions. rng is (B, num_draws) uniform numbers, or draws
        them."""
        assert isinstance(backbone, TokenViT) and target.value is not None and backbone.num_codes is not None
        ids, config = target.value, self.config
        numbers = drawn(rng, len(ids), 1 + num_replace_draws(config.replace_ratio, backbone.grid), ids.device)
        seen = ids
        if config.replace_ratio:
            seen = replaced(ids, ~mask.hidden, config.replace_ratio, numbers[:, 1:], backbone.num_codes)
        logits, features = self._predict(backbone, seen, mask, told(backbone, target, numbers[:, 0]))
        each = token_losses(logits, ids, config.label_smoothing)
        losses = {"token": mask.mean_over_hidden(each)}
        if config.replace_ratio:
            losses["restore"] = mean_where(each, ~mask.hidden)
        right = (logits.detach().argmax(-1) == ids).float()
        return {**losses, "accuracy": mask.mean_over_hidden(right)}, features

    def _predict(self, backbone: TokenViT, ids: Tensor, mask: Mask, prefix: Tensor) -> tuple[Tensor, Features]:
        """Logits (B, N, K) of all positions, and the encoder's features of the visible ones."""
        dropped = self.config.num_dropped(ids.shape[1], mask.num_hidden)
        kept = mask.order[:, : ids.shape[1] - dropped].sort(1).values
        shown = torch.where(mask.hidden, backbone.mask_id, ids).gather(1, kept)
        features = backbone(backbone.embed_tokens(shown), kept, prefix=prefix)
        encoded = self.decoder.embed(features.sequence)
        front, rows = encoded[:, : backbone.num_prefix], encoded[:, backbone.num_prefix :]
        slot = front[:, :1]
        rows = torch.where(mask.hidden.gather(1, kept)[..., None], slot, rows)
        full = slot.expand(-1, ids.shape[1], -1).scatter(1, kept[..., None].expand_as(rows), rows)
        decoded = self.decoder(torch.cat([front, full], dim=1))[:, backbone.num_prefix :]
        place = (kept[:, :, None] == mask.ids_keep[:, None, :]).long().argmax(1)  # of each visible one among the kept
        sequence = torch.cat([features.prefix, gather_rows(features.tokens, place)], dim=1)
        return self._logits(backbone, decoded), Features(sequence, features.num_prefix)

    @torch.no_grad()
    def look(self, backbone: TokenViT, canvas: Canvas, memory: Memory | None, num_targets: int = 0) -> Tensor:
        """Logits (B, N, K) float32 of every position; nothing is dropped."""
        encoding = None if memory is None else memory.encoder.record()
        features = backbone(backbone.embed_tokens(canvas.tokens), prefix=canvas.prefix, memory=encoding)
        filled = self._filled(features, canvas.known)
        decoded = self.decoder(filled, memory=None if memory is None else memory.decoder.record())
        return self._logits(backbone, decoded[:, backbone.num_prefix :])

    @torch.no_grad()
    def look_again(
        self, backbone: TokenViT, canvas: Canvas, memory: Memory, targets: Tensor, num_filled: int
    ) -> Tensor:
        """Logits (B, n, K) float32 of the targets: class slot and targets through the encoder, then the decoder, where
        targets not filled yet hold the class slot's new feature; other positions keep what the old one gave."""
        slots = backbone.slots(targets)
        tokens = backbone.embed_tokens(canvas.tokens.gather(1, targets))
        features = backbone(tokens, targets, prefix=canvas.prefix, memory=memory.encoder.refresh(slots))
        filled = self._filled(features, canvas.known.gather(1, targets))
        decoded = self.decoder(filled, slots, memory.decoder.refresh(slots))
        return self._logits(backbone, decoded[:, backbone.num_prefix :])

    @torch.no_grad()
    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Visible pixels as they are and the likeliest tokens' pixels elsewhere, (B, C, H, W) float32 in 0..1."""
        assert isinstance(backbone, TokenViT)
        ids = self.tokenizer.tokens(images)
        prefix = backbone.prefix_ids(None, len(ids), ids.device)
        guessed = self._predict(backbone, ids, mask, prefix)[0].argmax(-1)
        decoded = self.tokenizer.images(torch.where(mask.hidden, guessed, ids), backbone.grid)
        return pasted(decoded, images, mask, backbone)

    def _filled(self, features: Features, known: Tensor) -> Tensor:
        """The decoder's input (B, F + L, D): encoded tokens where known (B, L), the class slot's elsewhere."""
        encoded = self.decoder.embed(features.sequence)
        front, rows = encoded[:, : features.num_prefix], encoded[:, features.num_prefix :]
        return torch.cat([front, torch.where(known[..., None], rows, front[:, :1])], dim=1)

    def _logits(self, backbone: TokenViT, decoded: Tensor) -> Tensor:
        assert backbone.num_codes is not None
        logits: Tensor = self.head(decoded, backbone.token_embed, backbone.num_codes, frozen=True)
        return logits


def pasted(decoded: Tensor, images: Tensor, mask: Mask, backbone: Backbone) -> Tensor:
    """images (B, C, H, W) uint8 with the hidden patches of decoded (B, C, H, W) in 0..1: float32 in 0..1."""
    grid, p = backbone.grid, backbone.patch_size
    hidden = mask.hidden.unflatten(1, (grid.height, grid.width)).repeat_interleave(p, 1).repeat_interleave(p, 2)
    return torch.where(hidden[:, None], decoded, images.float() / 255)
