"""Post-sequence mask queries: hidden patches are asked for at the end of a causal sequence, where they see all visible
ones.

iLLaMA puts the class token behind the patches so that a causal mask hides none of them from it (Wang et al., "Adapting
LLaMA Decoder to Vision Transformer", section 3.3); here the same is done for what is predicted. The sequence is the
visible patches in raster order, one question for each hidden patch (the mask token at that patch's place), the class
token. A question sees all visible patches and itself; nobody sees a question. That is a hard mask *before* the softmax
whatever the encoder's mode, so visible features are those without questions, and predictions do not know of each other.
CM3 moves masked text to the end of a causal sequence likewise (Aghajanyan et al., section 2); there what is masked is
generated token by token. No published work that pretrains an image encoder this way was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from einops import repeat
from torch import Tensor, nn

from masking.mask import Mask
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import Sizes
from pretrain.backbones.layers import initialize
from pretrain.objectives.base import Objective
from pretrain.objectives.pixel import predicted_ids
from pretrain.objectives.pixel_target import PixelTarget
from pretrain.ranges import POSITIVE_SHARE, check_ranges
from pretrain.types import Features, Losses, Target

if TYPE_CHECKING:
    from pretrain.backbones.illama import Illama


@dataclass(frozen=True)
class MaskQueriesConfig:
    """Pixels of hidden patches from questions behind the visible ones, by their squared error."""

    norm_pixels: bool = True  # targets are each patch's pixels less their mean, over their standard deviation
    predict_ratio: float = 1.0  # share of the hidden patches that is asked for; it changes no prediction still made

    least_hidden: ClassVar[int | None] = 1
    reconstructs: ClassVar[bool] = True
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = "questions"

    @property
    def chooses(self) -> bool:
        """Whether only some of the hidden patches are predicted."""
        return self.predict_ratio < 1

    def check(self) -> None:
        """Raises ConfigError for a share that is none."""
        check_ranges(vars(self), {"predict_ratio": POSITIVE_SHARE}, "objective.")

    def build(self, backbone: Backbone) -> MaskQueries:
        """The objective for images as backbone sees them, with fresh weights."""
        return MaskQueries(self, backbone)

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on visible patches and questions, the head on questions."""
        asked = max(1, round(sizes.num_hidden * self.predict_ratio))
        return sizes.encoder_flops(sizes.num_visible + asked) + 2 * asked * sizes.width * sizes.num_values


class MaskQueries(Objective):
    """Mask token, head, target and loss."""

    def __init__(self, config: MaskQueriesConfig, backbone: Backbone) -> None:
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
        """{"pixel": (B,) float32}, the squared error averaged over predicted patches of images (B, C, H, W) uint8, and
        the features of visible patches. rng matters where predict_ratio < 1 only; see `predicted_ids`."""
        ids = mask.ids_mask
        if self.config.chooses:
            ids = predicted_ids(mask, self.config.predict_ratio, rng)
        prediction, visible = self._ask(backbone, images, mask, ids)
        return {"pixel": (prediction - self.pixels(images, ids)).square().mean((1, 2))}, visible

    @torch.no_grad()
    def reconstruct(self, backbone: Backbone, images: Tensor, mask: Mask) -> Tensor:
        """Visible pixels as they are and predictions for all hidden patches, (B, C, H, W) float32 in 0..1; see
        `PixelTarget.paste`."""
        return self.pixels.paste(images, mask, self._ask(backbone, images, mask, mask.ids_mask)[0])

    def _ask(self, backbone: Backbone, images: Tensor, mask: Mask, ids: Tensor) -> tuple[Tensor, Features]:
        """Pixels of patches ids (B, M), (B, M, P) in the space of the target, and features of visible patches."""
        visible = backbone.embed(images, mask.ids_keep)
        questions = repeat(self.mask_token, "1 1 d -> b m d", b=len(ids), m=ids.shape[1]).to(visible.dtype)
        places = torch.cat([mask.ids_keep, ids], dim=1)
        encoder = cast("Illama", backbone)  # checks.py: its config answers questions
        features = encoder(torch.cat([visible, questions], dim=1), places, num_queries=ids.shape[1])
        seen = features.num_prefix + mask.num_visible
        return self.head(features.sequence[:, seen:]), Features(features.sequence[:, :seen], features.num_prefix)
