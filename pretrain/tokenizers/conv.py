"""A small convolutional encoder and its mirror: residual blocks between halvings, or doublings, of the sides, after the
VQGAN of MaskGIT, without attention. Letters: B images, C channels, H and W sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


def encoder(in_chans: int, num_outputs: int, widths: Sequence[int], blocks: int) -> nn.Sequential:
    """From (B, in_chans, H, W) to (B, num_outputs, h, w); each width after the first halves the sides."""
    parts: list[nn.Module] = [_conv(in_chans, widths[0]), *_residuals(widths[0], blocks)]
    for before, width in pairwise(widths):
        parts += [_conv(before, width, stride=2), *_residuals(width, blocks)]
    return nn.Sequential(*parts, Head(widths[-1], num_outputs))


def decoder(num_inputs: int, out_chans: int, widths: Sequence[int], blocks: int) -> nn.Sequential:
    """From (B, num_inputs, h, w) to (B, out_chans, H, W); widths as in the encoder, whose mirror it is."""
    parts: list[nn.Module] = [_conv(num_inputs, widths[-1]), *_residuals(widths[-1], blocks)]
    for before, width in pairwise(reversed(widths)):
        parts += [Up(before, width), *_residuals(width, blocks)]
    return nn.Sequential(*parts, Head(widths[0], out_chans))


def conv_flops(num_inputs: int, num_outputs: int, pixels: int) -> float:
    """FLOPs of a 3 x 3 convolution with so many pixels in its output."""
    return 18.0 * num_inputs * num_outputs * pixels


def inner_flops(widths: Sequence[int], blocks: int) -> float:
    """FLOPs of encoder and decoder for one token, their outermost convolutions on both sides not included."""
    sides = [2 ** (len(widths) - 1 - level) for level in range(len(widths))]
    residuals = sum(2 * 2 * blocks * conv_flops(w, w, side**2) for w, side in zip(widths, sides, strict=True))
    pairs = zip(pairwise(widths), pairwise(sides), strict=True)
    return residuals + sum(conv_flops(a, b, large**2 + small**2) for (a, b), (large, small) in pairs)


class Residual(nn.Module):
    """Twice norm, SiLU and a convolution, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width), _conv(width, width)
        self.norm2, self.conv2 = _norm(width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W) to the same shape."""
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Up(nn.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.conv = _conv(num_inputs, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, num_inputs, h, w) to (B, num_outputs, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Head(nn.Module):
    """Norm, SiLU and the last convolution."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.norm, self.conv = _norm(width), _conv(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W) to (B, num_outputs, H, W)."""
        return self.conv(F.silu(self.norm(x)))


def _residuals(width: int, number: int) -> list[Residual]:
    return [Residual(width) for _ in range(number)]


def _conv(num_inputs: int, num_outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, width // 4), width)  # 32 groups as usual, of 4 channels or more
