"""From an encoder's patches to a score of every class at every place: a linear layer, or UPerNet (Xiao et al., "Unified
Perceptual Parsing for Scene Understanding", section 3) on the pyramid that BEiT and MAE make of a plain ViT.

Norms are GroupNorm. The published heads have BatchNorm, whose statistics are of the images that one process holds: the
same run would then be another on another number of processes, an image that could not be read would be in the
statistics of its neighbours, and running averages would be state. A group's statistics are of one image.

Letters: B images, h and w the patch grid, D width of the encoder, W of the head, C classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pretrain.backbones.flops import Sizes

_POOLS = (1, 2, 3, 6)  # places a side that the coarsest level is pooled to
_GROUP = 16  # channels normalised together


class LinearHead(nn.Module):
    """Scores of patches by a linear layer on the last of the levels."""

    def __init__(self, width: int, num_classes: int, drop: float) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(drop)
        self.classify = _classifier(width, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, D, h, w) -> (B, C, h, w)."""
        scores: Tensor = self.classify(self.drop(levels[-1]))
        return scores


class UPerNet(nn.Module):
    """Four levels of a plain encoder as a pyramid of 4, 2, 1 and 1/2 times its grid, fused from coarse to fine."""

    def __init__(self, encoder_width: int, width: int, num_classes: int, drop: float) -> None:
        super().__init__()
        self.pyramid = nn.ModuleList([
            nn.Sequential(_twice(encoder_width), _norm(encoder_width), nn.GELU(), _twice(encoder_width)),
            _twice(encoder_width),
            nn.Identity(),
            nn.MaxPool2d(2, ceil_mode=True),  # a grid of one row keeps it
        ])  # fmt: skip
        self.pools = nn.ModuleList(_conv(encoder_width, width, 1) for _ in _POOLS)
        self.top = _conv(encoder_width + len(_POOLS) * width, width, 3)
        self.lateral = nn.ModuleList(_conv(encoder_width, width, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in range(3))
        self.fuse = _conv(4 * width, width, 3)
        self.drop = nn.Dropout2d(drop)
        self.classify = _classifier(width, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, D, h, w), four of them, the last the encoder's output -> (B, C, 4 h, 4 w)."""
        *finer, coarsest = [scale(level) for scale, level in zip(self.pyramid, levels, strict=True)]
        pooled = [
            _to(pool(adaptive_avg_pool2d(coarsest, places)), coarsest)
            for pool, places in zip(self.pools, _POOLS, strict=True)
        ]
        above = self.top(torch.cat([coarsest, *pooled], 1))
        fused = [above]
        for level, lateral, smooth in zip(reversed(finer), reversed(self.lateral), reversed(self.smooth), strict=True):
            above = lateral(level) + _to(above, level)
            fused.append(smooth(above))
        finest = fused[-1]
        scores: Tensor = self.classify(self.drop(self.fuse(torch.cat([_to(level, finest) for level in fused], 1))))
        return scores


def linear_flops(sizes: Sizes, num_classes: int) -> float:
    """FLOPs of a LinearHead's forward for one image."""
    return 2 * sizes.num_patches * sizes.width * num_classes


def upernet_flops(sizes: Sizes, width: int, num_classes: int) -> float:
    """FLOPs of a UPerNet's forward for one image."""
    assert sizes.grid is not None
    patches, encoder = sizes.num_patches, sizes.width
    coarse = math.ceil(sizes.grid.height / 2) * math.ceil(sizes.grid.width / 2)
    fine, places = 16 * patches, 21 * patches  # of the finest level, and of the three that have laterals
    pyramid = 4 * (patches + 4 * patches + patches) * encoder**2
    top = sum(side**2 for side in _POOLS) * encoder * width + coarse * 9 * (encoder + len(_POOLS) * width) * width
    down = places * (encoder * width + 9 * width**2) + fine * (9 * 4 * width**2 + width * num_classes)
    return 2 * (pyramid + top + down)


def _to(level: Tensor, like: Tensor) -> Tensor:
    return interpolate(level, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _twice(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(width // math.gcd(width, _GROUP), width)


def _conv(inside: int, width: int, side: int) -> nn.Module:
    conv = nn.Conv2d(inside, width, side, padding=side // 2, bias=False)
    return nn.Sequential(conv, _norm(width), nn.ReLU())


def _classifier(width: int, num_classes: int) -> nn.Module:
    layer = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
