"""One layer that says what a full pass would, once some tokens are revealed: ADJUST (Bansal & Sanghavi, "Enabling
Approximate Joint Sampling in Diffusion LMs", 2025), for images.

A MaskGIT that is trained and frozen has looked at an image once. Its features, and the tokens that were revealed since,
go through one transformer block, the backbone of this run, whose output is added to the features before the same head.
It learns to say what the base would after a look at the revealed tokens: the divergence between the two, at positions
that are hidden still. The way back starts at zero, so an untrained one says what the base said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from masking.mask import Grid, Mask
from pretrain.backbones.base import Backbone, BackboneConfig
from pretrain.backbones.flops import Sizes, block_flops
from pretrain.backbones.layers import initialize
from pretrain.objectives.base import Objective
from pretrain.objectives.joint_base import RANDOM, base_of, base_size
from pretrain.objectives.maskgit import hidden_by
from pretrain.objectives.token_model import drawn, head_flops, mean_where, told_labels
from pretrain.tokenizers.token_vit import TokenViT
from pretrain.types import Features, Labels, Losses, Target

_EMBEDDED = 0.02  # deviation of embeddings as they begin


@dataclass(frozen=True)
class JointSamplerConfig:
    """What a frozen MaskGIT would say after the next tokens, by one block more."""

    base: str = RANDOM  # directory of a run that trained MaskGIT; random: fresh weights, for tests and timings
    weights: Literal["ema", "model"] | None = None  # which weights of that run; None: ema, where it keeps that

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = None  # it hides tokens itself
    reconstructs: ClassVar[bool] = False
    gives_guidance: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = "codes"
    follows_student: ClassVar[bool] = False

    def check(self) -> None:
        """Every setting can be meant; whether the run is there is seen when it is read."""

    def build(self, backbone: Backbone) -> JointSampler:
        """The objective for a student on the tokens of the base, with fresh weights."""
        return JointSampler(self, backbone)

    def num_draws(self, backbone: BackboneConfig, grid: Grid) -> int:
        """The hidden share, the class's drop, the revealed share, and an order of the positions."""
        return 3 + grid.num_patches

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward through what is trained, and through the base's head behind it."""
        width, _ = base_size(self.base, sizes.width)
        ways = 3 * sizes.num_patches * 2 * width * sizes.width
        return sizes.encoder_flops(sizes.num_patches) + ways + head_flops(sizes.num_patches, width, sizes.num_codes)

    def target_flops(self, sizes: Sizes) -> float:
        """FLOPs of two passes of the base: before and after the tokens are revealed."""
        width, depth = base_size(self.base, sizes.width)
        blocks = depth * block_flops(sizes.num_patches + 1, width)
        return 2 * (blocks + head_flops(sizes.num_patches, width, sizes.num_codes))


class JointSampler(Objective):
    """The ways from the base's features to the block and back."""

    measured = frozenset({"marginal"})

    def __init__(self, config: JointSamplerConfig, backbone: Backbone) -> None:
        super().__init__()
        assert isinstance(backbone, TokenViT)  # checks.py
        self.checkpointing = False  # there is no decoder; the backbone has its own
        self.config, self.tokenizer = config, backbone.tokenizer
        # No module: it is never trained, saved or cast.
        self.base = base_of(config.base, config.weights or "ema", backbone.config, backbone.grid, backbone.in_chans)
        width = self.base.backbone.width
        self.enter, self.reveal = nn.Linear(width, backbone.width), nn.Linear(width, backbone.width)
        self.leave = nn.Linear(backbone.width, width)
        initialize(self)
        nn.init.zeros_(self.leave.weight)

    def target(self, images: Tensor, labels: Labels | None = None) -> Target:
        """Ids (B, N) int64 of images (B, C, H, W) uint8."""
        return Target(value=self.tokenizer.tokens(images), labels=labels)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"joint": (B,) float32}, nats, the divergence from what the base says with the revealed tokens to what is
        said here, averaged over the positions hidden still; "marginal", the same of what the base said without them.
        mask hides nothing; rng is (B, num_draws) uniform numbers, or draws them."""
        assert isinstance(backbone, TokenViT) and target.value is not None
        ids = target.value
        numbers = drawn(rng, len(ids), 3 + ids.shape[1], ids.device)
        hidden = hidden_by(numbers[:, 0], numbers[:, 3:], "cosine")
        revealed = hidden & (numbers[:, 3:].argsort(1).argsort(1) < _num_revealed(hidden, numbers[:, 2])[:, None])
        labels = told_labels(backbone, target, numbers[:, 1])
        before = torch.where(hidden, self.base.backbone.mask_id, ids)
        prefix = self.base.backbone.prefix_ids(labels, len(ids), ids.device)
        known = self.base.features(before, prefix)
        with torch.no_grad():
            after = self.base.features(torch.where(revealed, ids, before), prefix)
            wanted, marginal = self.base.logits(after).log_softmax(-1), self.base.logits(known).log_softmax(-1)
        found, features = self._look(backbone, known, ids, revealed, labels)
        left = hidden & ~revealed
        losses = {"joint": mean_where(_divergence(wanted, found.log_softmax(-1)), left)}
        return {**losses, "marginal": mean_where(_divergence(wanted, marginal), left)}, features

    @torch.no_grad()
    def look_again(
        self, backbone: TokenViT, known: Tensor, ids: Tensor, revealed: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Logits (B, N, K) float32 from features known (B, N, D) of a full pass, once ids (B, N) are there where
        revealed (B, N) bool; labels (B,) int64, -1 where no class is told."""
        return self._look(backbone, known, ids, revealed, labels)[0]

    def _look(
        self, backbone: TokenViT, known: Tensor, ids: Tensor, revealed: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Features]:
        dtype = self.enter.weight.dtype
        seen = self.base.embeddings(ids) / _EMBEDDED  # about as large as the features, which a norm has left
        seen = torch.where(revealed[..., None], self.reveal(seen.to(dtype)), 0)
        entered = self.enter(known.to(dtype)) + seen
        features = backbone(entered, prefix=backbone.prefix_ids(labels, len(ids), ids.device))
        return self.base.logits(known + self.leave(features.tokens).float()), features


def _num_revealed(hidden: Tensor, numbers: Tensor) -> Tensor:
    """How many of the hidden (B, N) bool are revealed, (B,): any number alike, but one at least stays hidden."""
    return (numbers * hidden.sum(1)).long()


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Kullback and Leibler's, nats, from log-probabilities (B, N, K): (B, N)."""
    return (wanted.exp() * (wanted - found)).sum(-1)
