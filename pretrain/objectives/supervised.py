"""Classification of whole images by the encoder and a linear layer, from scratch: what iLLaMA's authors train (Wang et
al., "Adapting LLaMA Decoder to Vision Transformer", section 3 and appendix B), and any other encoder likewise.

Nothing is hidden. Targets are soft: where the step mixed two images, each class counts by its share, and a little of
every target is spread over all classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from masking.mask import Mask
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import Sizes
from pretrain.objectives.base import Objective
from pretrain.ranges import AT_LEAST_0, BELOW_1, Range, check_ranges
from pretrain.types import Features, Labels, Losses, Target

_RANGES: dict[str, Range] = {
    "num_classes": ("2 or more", lambda v: v >= 2),
    "label_smoothing": BELOW_1,
    "head_init_std": AT_LEAST_0,
}


@dataclass(frozen=True)
class SupervisedConfig:
    """The class of an image, from one vector of the encoder."""

    num_classes: int = 1000  # labels are 0 to one less; a sample with another, or with none, counts as a bad one
    label_smoothing: float = 0.1  # share of each target that is spread over all classes
    # MAE fine-tunes norm_of_mean (its fc_norm): the encoder's last norm after the mean in place of before it.
    pool: Literal["cls", "mean", "norm_of_mean"] = "cls"  # what the head reads: class token, or patches
    head_init_std: float = 0.02  # deviation of the head's first weights

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = None
    reconstructs: ClassVar[bool] = False
    gives_guidance: ClassVar[bool] = False

    @property
    def asks(self) -> str | None:
        """A class token, where it is what the head reads."""
        return "class_token" if self.pool == "cls" else None

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "objective.")

    def build(self, backbone: Backbone) -> Supervised:
        """The objective for images as backbone sees them, with fresh weights."""
        return Supervised(self, backbone)

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on all patches, and the head."""
        encoder = sizes.encoder_flops(sizes.num_patches, only_prefix=self.pool == "cls")
        return encoder + 2 * sizes.width * self.num_classes


class Supervised(Objective):
    """Head and loss."""

    def __init__(self, config: SupervisedConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # there is no decoder; the backbone has its own
        self.head = nn.Linear(backbone.width, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=config.head_init_std)
        nn.init.zeros_(self.head.bias)

    def target(self, images: Tensor, labels: Labels | None = None) -> Target:
        """The labels as they are; images (B, C, H, W) are not looked at."""
        return Target(labels=labels)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"class": (B,) float32}, the cross-entropy of images (B, C, H, W) uint8 with their soft targets, and the
        features of all patches, or of the prefix alone where the head reads the class token. mask hides nothing, and
        rng is not used."""
        assert target.labels is not None
        features = self._encode(backbone, images)
        logits = self._score(backbone, features)
        return {"class": soft_cross_entropy(logits, target.labels, self.config.label_smoothing)}, features

    @torch.no_grad()
    def classify(self, backbone: Backbone, images: Tensor) -> Tensor:
        """What each class scores for images (B, C, H, W) uint8, seen whole: (B, num_classes) float32."""
        return self._score(backbone, self._encode(backbone, images))

    def _encode(self, backbone: Backbone, images: Tensor) -> Features:
        last = (len(backbone.blocks) - 1,) if self.config.pool == "norm_of_mean" else ()
        return backbone(backbone.embed(images), layers=last, only_prefix=self.config.pool == "cls")

    def _score(self, backbone: Backbone, features: Features) -> Tensor:
        """(B, num_classes) float32."""
        if self.config.pool == "norm_of_mean":
            pooled = backbone.norm(features.layers[0][:, features.num_prefix :].mean(1))
        else:
            pooled = features.prefix[:, 0] if self.config.pool == "cls" else features.tokens.mean(1)
        return self.head(pooled).float()


def soft_cross_entropy(logits: Tensor, labels: Labels, smoothing: float) -> Tensor:
    """Cross-entropy of logits (B, C) float32 with targets (1 - smoothing) * (share * first + (1 - share) * second) +
    smoothing / C, (B,) float32. A row without a label gets a number all the same, which its weight 0 leaves out."""
    log_probs = logits.log_softmax(1)
    chosen = torch.stack([labels.first, labels.second], 1).clamp(min=0)
    shares = torch.stack([labels.share, 1 - labels.share], 1)
    of_classes = (log_probs.gather(1, chosen) * shares).sum(1)
    return -(1 - smoothing) * of_classes - smoothing * log_probs.mean(1)
