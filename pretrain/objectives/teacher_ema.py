"""The average of the student as its teacher (DINO: Caron et al., section 3.1; BYOL's target network).

Unlike a frozen teacher it is state: float32 buffers, saved and restored like a schedule's values and unknown to the
optimizer. They move after an update by what the module's own weights then are, the same on every rank, so a run that
was killed goes on bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.backbones.base import Backbone
from pretrain.objectives.importance import Importance
from pretrain.objectives.teacher_encoders import Lesson, OwnEncoder


class EmaTeacher(nn.Module):
    """A copy of backbone whose weights are buffers; always in eval mode."""

    def __init__(self, backbone: Backbone, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._averaged = [name for name, _ in backbone.named_parameters()]
        self._copied = sorted(backbone.moving())
        self.encoder = OwnEncoder(_without_parameters(copy.deepcopy(backbone))).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, levels: Sequence[int], importance: Importance, dtype: torch.dtype) -> Lesson:
        """What it says of images (B, C, H, W) uint8, its float32 weights rounded to dtype where products are made."""
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            lesson: Lesson = self.encoder(images, levels, importance)
        return lesson

    @torch.no_grad()
    def update(self, backbone: Backbone, skipped: Tensor) -> None:
        """After a step: moves by 1 - decay towards backbone's weights; where skipped () is 1 nothing moves. Does not
        wait for the device."""
        own, others = self.encoder.backbone, dict(backbone.named_parameters())
        averages = [own.get_buffer(name) for name in self._averaged]
        weights = [others[name].detach().to(average.dtype) for name, average in zip(self._averaged, averages)]
        weight = (1 - self.decay) * (1 - skipped)
        torch._foreach_lerp_(averages, weights, [weight.to(averages[0].dtype)] * len(averages))
        for name in self._copied:
            own.get_buffer(name).copy_(backbone.get_buffer(name))

    def moving(self) -> set[str]:
        """Names of its float32 buffers: all of them, so that none is rounded in a bf16 run."""
        found = self.state_dict()
        return {name for name, value in found.items() if value.is_floating_point()}

    def train(self, mode: bool = True) -> EmaTeacher:
        """Stays in eval mode: nothing of a teacher is dropped at random."""
        super().train(False)
        return self


def _without_parameters(backbone: Backbone) -> Backbone:
    for module in backbone.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return backbone
