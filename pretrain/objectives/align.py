"""MaskAlign: what a student makes of the patches it sees is drawn to what a teacher, which sees the whole image, makes
of the same patches (Xue et al., "Stare at What You See: Masked Image Modeling without Reconstruction", section 3).

There is no mask token, no decoder, and nothing is predicted of hidden patches. The student's last level is read behind
the encoder's last norm, as every downstream use reads it; the others are the raw stream after their blocks. In the
authors' code the last level is raw too, and the norm gets no gradient. Letters: B images, N patches, K kept, T tokens
that are compared (class token and visible patches), D width."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from masking.mask import Mask, gather_rows
from pretrain.backbones.base import Backbone
from pretrain.backbones.flops import Sizes
from pretrain.errors import ConfigError
from pretrain.objectives.alignment import (
    Adaptor,
    Alignment,
    Levels,
    Normalize,
    comparable,
    contributions,
    level_weights,
)
from pretrain.objectives.base import Objective
from pretrain.objectives.importance import Importance, importance_flops
from pretrain.objectives.teacher_ema import EmaTeacher
from pretrain.objectives.teacher_encoders import TeacherEncoder, has_class_token
from pretrain.objectives.teachers import FrozenTeacher, TeacherConfig, frozen_teacher
from pretrain.ranges import AT_LEAST_1, Range, check_ranges
from pretrain.types import Features, Labels, Losses, Target

_RANGES: dict[str, Range] = {"num_levels": AT_LEAST_1}


@dataclass(frozen=True)
class MaskAlignConfig:
    """A teacher's features of visible patches, at several depths, by their smooth absolute error."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)  # who is aligned with
    # The last num_levels blocks, those in the middle, all alike, the last alone, or all in proportion to their height.
    levels: Levels = "top"  # the teacher's blocks that are compared: top, middle, all, last, linear
    num_levels: int = 5  # how many blocks top and middle are, or all where there are fewer
    mixing: bool = True  # each level is compared with a learned mix of all layers of the student; off: with its own
    adaptor: Adaptor = "linear"  # from the student's width to the teacher's, one a level: linear, or two layers (mlp)
    normalize: Normalize = "whiten"  # targets: each token whitened over its channels, of length 1 (l2), or none

    chooses: ClassVar[bool] = False
    least_hidden: ClassVar[int | None] = 0
    reconstructs: ClassVar[bool] = False
    gives_guidance: ClassVar[bool] = True
    num_classes: ClassVar[int | None] = None
    asks: ClassVar[str | None] = None

    @property
    def follows_student(self) -> bool:
        """Whether the teacher is the student's average."""
        return self.teacher.is_ema

    def check(self) -> None:
        """Raises ConfigError for settings that cannot be meant; what depends on the teacher's files is said by
        `build`."""
        check_ranges(vars(self), _RANGES, "objective.")
        self.teacher.check()

    def build(self, backbone: Backbone) -> MaskAlign:
        """The objective for images as backbone sees them, with fresh weights. Raises ConfigError where the teacher
        cannot be had, or cannot teach such a student."""
        return MaskAlign(self, backbone)

    def forward_flops(self, sizes: Sizes) -> float:
        """FLOPs of one image's forward: the encoder on visible patches; mixing and adaptors on these and the class
        token."""
        num, width = (sizes.depth, sizes.width) if self.teacher.is_ema else _shape(self._encoder(sizes))
        weights = level_weights(self.levels, self.num_levels, num)
        with torch.device("meta"):
            alignment = Alignment(weights, sizes.depth, sizes.width, width, self.adaptor, self.mixing)
        tokens = sizes.num_visible + min(sizes.num_prefix, 1)
        return sizes.encoder_flops(sizes.num_visible) + alignment.flops(tokens, sizes.depth, sizes.width)

    def target_flops(self, sizes: Sizes) -> float:
        """FLOPs of the teacher's forward for one image, with patch projection and importance of patches."""
        num, kind = sizes.num_patches, self.teacher.importance
        if not self.teacher.is_ema:
            encoder = self._encoder(sizes)
            return encoder.forward_flops() + importance_flops(kind, num, encoder.num_prefix, encoder.width)
        projection = 2 * num * sizes.num_values * sizes.width
        told = importance_flops(kind, num, sizes.num_prefix, sizes.width)
        return sizes.encoder_flops(num) + projection + told

    def _encoder(self, sizes: Sizes) -> TeacherEncoder:
        assert sizes.grid is not None, "a frozen teacher is made for a grid"
        return frozen_teacher(self.teacher, sizes.grid).encoder


class MaskAlign(Objective):
    """Alignment and loss; with the student's average where that is the teacher."""

    def __init__(self, config: MaskAlignConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # there is no decoder; the backbone has its own
        self.ema = EmaTeacher(backbone, config.teacher.decay) if config.teacher.is_ema else None
        self._frozen = None if config.teacher.is_ema else frozen_teacher(config.teacher, backbone.grid)
        encoder = self._teacher().encoder
        num, width = _shape(encoder)
        _check_pair(config, backbone, encoder)
        self.num_student = len(backbone.blocks)
        self.teacher_has_class_token = encoder.has_class_token
        self.with_class_token = encoder.has_class_token and has_class_token(backbone)
        weights = level_weights(config.levels, config.num_levels, num)
        self.alignment = Alignment(weights, self.num_student, backbone.width, width, config.adaptor, config.mixing)

    def target(self, images: Tensor, labels: Labels | None = None) -> Target:
        """What the teacher makes of images (B, C, H, W) uint8: its states at the levels that count, and how much each
        patch matters to it, (B, N) float32."""
        dtype = next(self.alignment.parameters()).dtype  # the format of the run
        lesson = self._teacher()(images, self.alignment.levels, self.config.teacher.importance, dtype)
        return Target(guidance=lesson.importance, layers=lesson.layers)

    def forward(
        self,
        backbone: Backbone,
        images: Tensor,
        mask: Mask,
        target: Target,
        rng: torch.Generator | Tensor | None = None,
    ) -> tuple[Losses, Features]:
        """{"align": (B,) float32}, the distances of the levels that count, weighed, and the features of visible
        patches of images (B, C, H, W) uint8. Everything seen is compared; rng is not used."""
        layers, features = self._student(backbone, images, mask)
        return {"align": self.alignment.total(self.alignment(layers, self._wanted(target, mask)))}, features

    def no_weight_decay(self) -> set[str]:
        """The matrix of the mix: decay would draw it to nothing, and its start is not nothing."""
        return {"alignment.mixing.weight"}

    def moving(self) -> set[str]:
        """The student's average, where that is the teacher."""
        return set() if self.ema is None else {f"ema.{name}" for name in self.ema.moving()}

    def after_update(self, backbone: Backbone, skipped: Tensor) -> None:
        """Moves the student's average, where that is the teacher."""
        if self.ema is not None:
            self.ema.update(backbone, skipped)

    @torch.no_grad()
    def inspect(self, backbone: Backbone, images: Tensor, mask: Mask, target: Target) -> dict[str, Any]:
        """The matrix, its rows as shares of what each layer contributes, and the distance at each level that counts."""
        layers, _ = self._student(backbone, images, mask)
        distances = self.alignment(layers, self._wanted(target, mask))
        scales = torch.stack([layer.float().square().mean().sqrt() for layer in layers])
        matrix = self.alignment.matrix().to(scales.device)
        return {
            "matrix": _rounded(matrix),
            "contributions": _rounded(contributions(matrix, scales)),
            "layer_sizes": _rounded(scales),
            "levels": list(self.alignment.levels),
            "distances": _rounded(distances.mean(1)),
        }

    def _teacher(self) -> FrozenTeacher | EmaTeacher:
        teacher = self.ema if self._frozen is None else self._frozen
        assert teacher is not None
        return teacher

    def _student(self, backbone: Backbone, images: Tensor, mask: Mask) -> tuple[list[Tensor], Features]:
        """What the student makes of visible patches, layer by layer, (B, T, D) each, and its features."""
        raw = range(self.num_student - 1)
        features = backbone(backbone.embed(images, mask.ids_keep), mask.ids_keep, layers=raw)
        first, kept = features.num_prefix, int(self.with_class_token)
        layers = [*features.layers, features.sequence]
        if first != kept:
            layers = [torch.cat([x[:, :kept], x[:, first:]], dim=1) for x in layers]
        return layers, features

    def _wanted(self, target: Target, mask: Mask) -> list[Tensor]:
        """The teacher's states of the same tokens, ready to be compared: (B, T, D') float32 each."""
        skipped = int(self.teacher_has_class_token)
        ids = mask.ids_keep + skipped
        if self.with_class_token:
            ids = torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1)
        return [comparable(gather_rows(x, ids), self.config.normalize) for x in target.layers]


def _shape(encoder: TeacherEncoder) -> tuple[int, int]:
    """(number of levels, width)."""
    return len(encoder.blocks), encoder.width


def _check_pair(config: MaskAlignConfig, backbone: Backbone, encoder: TeacherEncoder) -> None:
    """Raises ConfigError where such a teacher cannot teach such a student."""
    name, num, depth = config.teacher.model, len(encoder.blocks), len(backbone.blocks)
    if encoder.in_chans != backbone.in_chans:
        raise ConfigError(
            f"objective.teacher.model={name} sees {encoder.in_chans} channels and data.in_chans={backbone.in_chans}; "
            "they must be equal"
        )
    if not config.mixing and num != depth:
        raise ConfigError(
            f"objective.mixing=false compares block with block, and the teacher has {num} blocks, the student {depth}; "
            "use objective.mixing=true, or a teacher of equal depth"
        )
    if not encoder.can_say(config.teacher.importance):
        ways = [kind for kind in get_args(Importance) if encoder.can_say(kind)]
        raise ConfigError(
            f"objective.teacher.importance={config.teacher.importance}: the teacher {name} cannot tell that; it gives "
            f"{' and '.join(ways)}"
        )


def _rounded(values: Tensor) -> Any:
    """values as JSON numbers of five digits."""
    nested = values.double().cpu().tolist()
    return [[float(f"{v:.5g}") for v in row] if isinstance(row, list) else float(f"{row:.5g}") for row in nested]
