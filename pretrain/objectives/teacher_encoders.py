"""What a teacher is once it has been loaded: an encoder that says what it makes of whole images, block by block.

Hidden states are the raw residual stream after a block, class token in front, registers left out; its own size of
input and its own normalisation are its affair. Letters: B images, N patches of the grid, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from masking.mask import Grid
from pretrain.backbones.base import Backbone
from pretrain.objectives.importance import (
    Importance,
    attention_received,
    class_attention,
    gives_attention,
    similarity,
)
from pretrain.patches import PatchScale


class Lesson(NamedTuple):
    """What a teacher says of images."""

    layers: tuple[Tensor, ...]  # (B, 1 + N, D) after each block asked for; (B, N, D) where there is no class token
    importance: Tensor  # (B, N) float32 of patches, above 0


class TeacherEncoder(nn.Module):
    """An encoder of whole images on one grid. Its kinds differ in how they run their blocks."""

    grid: Grid
    width: int  # D
    patch_size: int  # pixels of its own input
    in_chans: int
    num_prefix: int  # class token and registers, in front of the patches
    has_class_token: bool

    @property
    def blocks(self) -> nn.ModuleList:
        """Its blocks; a property, for a module that has two names would be saved twice."""
        raise NotImplementedError

    def run(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """The whole sequence (B, num_prefix + N, D) after each of blocks wanted, ascending, for images (B, C, H, W)
        uint8."""
        raise NotImplementedError

    def forward(self, images: Tensor, levels: Sequence[int], importance: Importance) -> Lesson:
        """The states of images (B, C, H, W) uint8 after blocks levels, and how much each patch matters."""
        last = len(self.blocks) - 1
        wanted = sorted({*levels, last - 1, last})
        states = dict(zip(wanted, self.run(images, wanted), strict=True))
        weights = self._importance(states[last - 1], states[last], importance)
        return Lesson(tuple(self._without_registers(states[level]) for level in levels), weights)

    def can_say(self, importance: Importance) -> bool:
        """Whether it can tell importance of this kind."""
        attends = gives_attention(self.blocks[-1])
        return {"class": attends and self.has_class_token, "received": attends, "similarity": True}[importance]

    def forward_flops(self) -> float:
        """FLOPs of one image, patch projection included."""
        num_patches = self.grid.num_patches
        tokens, patch = num_patches + self.num_prefix, self.in_chans * self.patch_size**2
        linear = sum(m.weight.numel() for m in self.blocks.modules() if isinstance(m, nn.Linear))
        attention = 4 * tokens**2 * self.width * len(self.blocks)
        return 2 * tokens * linear + attention + 2 * num_patches * patch * self.width

    def _importance(self, before: Tensor, after: Tensor, kind: Importance) -> Tensor:
        """Importance of kind, from the sequences before and after the last block."""
        patches = slice(self.num_prefix, None)
        if kind == "class":
            return class_attention(self.blocks[-1], before)[:, patches]
        if kind == "received":
            return attention_received(self.blocks[-1], before, self.num_prefix)[:, patches]
        summary = after[:, :1] if self.has_class_token else after[:, patches].mean(1, keepdim=True)
        return similarity(summary, after[:, patches])

    def _without_registers(self, x: Tensor) -> Tensor:
        kept = int(self.has_class_token)
        return x if kept == self.num_prefix else torch.cat([x[:, :kept], x[:, self.num_prefix :]], dim=1)


class OwnEncoder(TeacherEncoder):
    """One of our backbones."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid, self.width, self.patch_size = backbone.grid, backbone.width, backbone.patch_size
        self.in_chans, self.num_prefix = backbone.in_chans, backbone.num_prefix
        self.has_class_token = has_class_token(backbone)
        self.pixels = TeacherPixels(self.grid, self.patch_size, backbone.mean, backbone.std)

    @property
    def blocks(self) -> nn.ModuleList:
        """The backbone's."""
        return self.backbone.blocks

    def run(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """See TeacherEncoder. Images of its own size go in as they are: its projection normalises in its weights."""
        given = images if self.pixels.fits(images) else self.pixels(images)
        return list(self.backbone(self.backbone.embed(given), layers=wanted).layers)


class TimmEncoder(TeacherEncoder):
    """A VisionTransformer of timm's, made for the input size of the grid."""

    def __init__(self, model: nn.Module, grid: Grid, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        vit: Any = model  # timm's, untyped
        self.model = vit
        self.grid, self.width, self.patch_size = grid, vit.embed_dim, vit.patch_embed.patch_size[0]
        self.in_chans = vit.patch_embed.proj.in_channels
        self.num_prefix, self.has_class_token = vit.num_prefix_tokens, vit.cls_token is not None
        self.pixels = TeacherPixels(grid, self.patch_size, mean, std)

    @property
    def blocks(self) -> nn.ModuleList:
        """The model's."""
        found: nn.ModuleList = self.model.blocks
        return found

    def run(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """See TeacherEncoder."""
        x = self.pixels(images).to(self.model.patch_embed.proj.weight.dtype)
        asked = {"indices": list(wanted), "output_fmt": "NLC", "intermediates_only": True}
        found = self.model.forward_intermediates(x, return_prefix_tokens=True, **asked)
        if not self.num_prefix:
            return list(found)
        return [torch.cat([prefix, patches], dim=1) for patches, prefix in found]


class TeacherPixels(nn.Module):
    """A crop as a teacher wants it: as many of its own patches as the student's grid has, and its normalisation."""

    def __init__(self, grid: Grid, patch_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = (grid.height * patch_size, grid.width * patch_size)
        self.scale = PatchScale(mean, std, 1)

    def fits(self, images: Tensor) -> bool:
        """Whether images (B, C, H, W) are of the size it wants."""
        return tuple(images.shape[-2:]) == self.size

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 resized (bicubic, antialiased as Pillow does when such models are trained) and
        normalised: (B, C, H', W') float32."""
        pixels = images.float()
        if not self.fits(images):
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True, align_corners=False)
        centre, scale, shift = (
            rearrange(v, "c -> c 1 1") for v in (self.scale.centre, self.scale.scale, self.scale.shift)
        )
        return torch.addcmul(shift, pixels - centre, scale)


def has_class_token(backbone: Backbone) -> bool:
    """Whether the first of an encoder's prefix tokens is a class token."""
    return getattr(backbone, "cls_token", None) is not None
