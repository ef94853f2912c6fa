"""MAE: predict the pixels of hidden patches (He et al., "Masked Autoencoders Are Scalable Vision Learners", section 3).

Tokens stay in the order [prefix | visible | hidden] from the encoder to the loss: transformer blocks do not care about
order once positions are added, so nothing is ever put back in raster order. The last decoder block asks for hidden
patches only, and norm and head see no others. The loss is that of the plain formulation (tests/objectives has it).

`decoder_weights` lead from MAE (1) to a decoder whose predictions do not know of each other (0), block by block if
wanted: a hidden key counts by its weight g inside the softmax, sum_j g_j e^(s_ij) v_j / sum_j g_j e^(s_ij), whether a
visible or a hidden patch asks. At 0 hidden patches attend to visible ones only, as in CrossMAE (Fu et al., "Rethinking
Patch Dependence for Masked Autoencoders", section 3), hidden keys are never computed, and predict_ratio changes no
prediction that is still made. Two things differ from CrossMAE: there visible tokens are not updated in the decoder, and
each of its blocks reads a learned mix of the encoder's blocks; here the decoder reads the encoder's output alone, and
visible tokens go on attending to each other, which is where the family arrives as g goes to 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masking.mask import Mask
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes, last_block_flops
from pretrain.backbones.layers import NORM_EPS, Block, LastKeys, initialize, run_block, sincos_positions
from pretrain.backbones.treatment import Treatment
from pretrain.errors import ConfigError
from pretrain.objectives.mask_tokens import MaskTokenObjective
from pretrain.objectives.mto_r import MtoR, Treated
from pretrain.objectives.pixel_target import PixelTarget
from pretrain.ranges import AT_LEAST_1, POSITIVE_SHARE, Range, check_ranges, check_width
from pretrain.types import Features, Losses, Target

_RANGES: dict[str, Range] = {
    "decoder_width": AT_LEAST_1,
    "decoder_depth": AT_LEAST_1,
    "decoder_heads": AT_LEAST_1,
    "predict_ratio": POSITIVE_SHARE,
    "decoder_weights": ("weights from 0 (CrossMAE) to 1 (MAE)", lambda v: all(0 <= weight <= 1 for weight in v)),
}


@dataclass(frozen=True)
class PixelMAEConfig:
    """Normalised-pixel prediction with a small decoder that is thrown away after pretraining."""

    decoder_width: int = 512  # width of the decoder's tokens
    decoder_depth: int = 8  # blocks of the decoder
    decoder_heads: int = 16  # attention heads of the decoder
    norm_pixels: bool = True  # targets are each patch's pixels less their mean, over their standard deviation
    predict_ratio: float = 1.0  # share of the hidden patches that is predicted; the others are not decoded
    decoder_weights: tuple[float, ...] = (1.0,)  # weight of hidden keys, one for all blocks or one a block; 0: unseen

    least_hidden: ClassVar[int | None] = 1
    reconstructs: ClassVar[bool] = True
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = None

    @property
    def chooses(self) -> bool:
        """Whether only some of the hidden patches are predicted."""
        return self.predict_ratio < 1

    def check(self) -> None:
        """Raises ConfigError for a decoder that cannot be built."""
        check_ranges(vars(self), _RANGES, "objective.")
        check_width("objective.decoder_", self.decoder_width, self.decoder_heads)
        if len(self.decoder_weights) not in (1, self.decoder_depth):
            raise ConfigError(
                f"objective.decoder_weights has {len(self.decoder_weights)} weights and objective.decoder_depth="
                f"{self.decoder_depth}; give one for all blocks, or one a block"
            )

    def build(self, backbone: Backbone) -> PixelMAE:
        """The objective for images as backbone sees them, with fresh weights."""
        return PixelMAE(self, backbone)

    def block_weights(self) -> tuple[float, ...]:
        """decoder_weights, one a block."""
        return self.decoder_weights * self.decoder_depth if len(self.decoder_weights) == 1 else self.decoder_weights

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on visible patches, the decoder on visible and predicted ones, its
        last block and the head on predicted ones. Where hidden keys have weight 0 they are not computed."""
        narrow, seen = self.decoder_width, sizes.num_visible + sizes.num_prefix
        predicted = max(1, round(sizes.num_hidden * self.predict_ratio))
        queries = [seen + predicted] * (self.decoder_depth - 1) + [predicted]
        keys = [seen + predicted if weight else seen for weight in self.block_weights()]
        blocks = sum(last_block_flops(asking, asked, narrow) for asking, asked in zip(queries, keys, strict=True))
        ends = 2 * seen * sizes.width * narrow + 2 * predicted * narrow * sizes.num_values
        return sizes.encoder_flops(sizes.num_visible) + ends + blocks

    def treated(self, backbone: BackboneConfig) -> Treated:
        """The decoder's blocks. Raises ConfigError for a decoder in which MTO-R cannot act."""
        if any(weight != 1 for weight in self.decoder_weights):
            raise ConfigError(
                f"objective.decoder_weights={','.join(map(str, self.decoder_weights))} and mto both say how much "
                "hidden keys count; set objective.decoder_weights=1 or mto=none"
            )
        if self.decoder_depth < 2:
            raise ConfigError(
                f"objective.decoder_depth={self.decoder_depth} is too few for mto: in the decoder's last block nobody "
                "asks but hidden patches; give 2 or more"
            )
        return Treated(self.decoder_depth, self.decoder_width, self.predict_ratio)


class PixelDecoder(nn.Module):
    """A narrow transformer from encoded visible patches to the pixels of hidden ones."""

    pos_embed: Tensor

    def __init__(self, config: PixelMAEConfig, backbone: Backbone) -> None:
        super().__init__()
        width = config.decoder_width
        self.checkpointing = False
        self.weights = config.block_weights()
        self.num_prefix = backbone.num_prefix
        self.embed = nn.Linear(backbone.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        # Row 0 is zeros, the position of prefix tokens; patch i has row i + 1.
        self.register_buffer("pos_embed", sincos_positions(backbone.grid, width, 1), persistent=False)
        self.blocks = nn.ModuleList(Block(width, config.decoder_heads) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, backbone.in_chans * backbone.patch_size**2)
        initialize(self)

    def forward(
        self, sequence: Tensor, ids_keep: Tensor, ids_predict: Tensor, treatment: Treatment | None = None
    ) -> Tensor:
        """sequence (B, num_prefix + K, D) of visible patches ids_keep (B, K); predicts patches ids_predict (B, M):
        (B, M, P), in the space of the target."""
        table = self.pos_embed[0]
        visible = self.embed(sequence) + table[F.pad(ids_keep + 1, (self.num_prefix, 0))]
        x = torch.cat([visible, self.mask_token + table[ids_predict + 1]], dim=1)
        num_hidden = ids_predict.shape[1]
        for block, weight in zip(self.blocks, self.weights, strict=True):
            num_queries = num_hidden if block is self.blocks[-1] else None
            if treatment is None:
                x = run_block(block, x, num_queries, LastKeys(num_hidden, weight), checkpointing=self.checkpointing)
            else:
                x = treatment.run(block, x, num_queries, checkpointing=self.checkpointing)
        return self.head(self.norm(x))


class PixelMAE(MaskTokenObjective):
    """Decoder, target and loss of MAE."""

    def __init__(self, config: PixelMAEConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.decoder = PixelDecoder(config, backbone)
        self.pixels = PixelTarget(backbone, config.norm_pixels)
        self.mto: MtoR | None = None

    @property
    def checkpointing(self) -> bool:
        """Whether the decoder's blocks are recomputed in backward."""
        return self.decoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.decoder.checkpointing = on

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"pixel": (B,) float32}, the squared error averaged over predicted patches of images (B, C, H, W) uint8, and
        the features of visible patches; MTO-R's losses beside it. rng matters where predict_ratio < 1 only, see
        `predicted_ids`, and for MTO-R."""
        ids = mask.ids_mask
        if self.config.chooses:
            ids = predicted_ids(mask, self.config.predict_ratio, rng)
        features = backbone(backbone.embed(images, mask.ids_keep), mask.ids_keep)
        treatment = None if self.mto is None else self.mto.treatment(mask, ids, backbone.num_prefix, rng)
        prediction = self.decoder(features.sequence, mask.ids_keep, ids, treatment)
        added = {} if self.mto is None else self.mto.losses(treatment)
        return {"pixel": (prediction - self.pixels(images, ids)).square().mean((1, 2)), **added}, features

    @torch.no_grad()
    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Visible pixels as they are and predictions for all hidden patches, (B, C, H, W) float32 in 0..1; see
        `PixelTarget.paste`."""
        features = backbone(backbone.embed(images, mask.ids_keep), mask.ids_keep)
        treatment = None if self.mto is None else self.mto.treatment(mask, mask.ids_mask, backbone.num_prefix)
        prediction = self.decoder(features.sequence, mask.ids_keep, mask.ids_mask, treatment)
        return self.pixels.paste(images, mask, prediction)

    def token(self) -> nn.Parameter:
        """The decoder's."""
        return self.decoder.mask_token

    def treated_blocks(self, backbone: Backbone) -> nn.ModuleList | None:
        """The decoder's, where every key counts."""
        return self.decoder.blocks if all(weight == 1 for weight in self.decoder.weights) else None

    def watch(self, backbone: Backbone, images: Tensor, mask: Mask, treatment: Treatment) -> Tensor:
        """Takes images through encoder and decoder; encoded visible patches at the decoder's width."""
        sequence = backbone(backbone.embed(images, mask.ids_keep), mask.ids_keep).sequence
        self.decoder(sequence, mask.ids_keep, mask.ids_mask, treatment)
        seen: Tensor = self.decoder.embed(sequence)
        return seen


def predicted_ids(mask: Mask, ratio: float, rng: torch.Generator | Tensor | None) -> Tensor:
    """A random share of each image's hidden patches, at least one, ascending: (B, M') int64. rng is a generator, or the
    noise itself, (B, N) float, where it is to be rows of a global draw (`Noise`); None draws from torch's own."""
    if not isinstance(rng, Tensor):
        rng = torch.rand(mask.hidden.shape, generator=rng, device=mask.hidden.device)
    count = max(1, round(mask.num_hidden * ratio))
    chosen = rng.gather(1, mask.ids_mask).argsort(dim=1, stable=True)[:, :count].sort(1).values
    return mask.ids_mask.gather(1, chosen)
