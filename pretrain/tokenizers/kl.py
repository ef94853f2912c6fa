"""Continuous tokens drawn from a normal distribution each, as in the tokenizers of latent diffusion (Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1) that MAR generates with: a small weight on
the divergence from the standard normal keeps them in reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from pretrain.ranges import AT_LEAST_0, Range, check_ranges
from pretrain.tokenizers.quantiser import Quantised, Quantiser

_LOG_VARIANCE = (-30.0, 20.0)  # what it is held between, as in latent diffusion
_RANGES: dict[str, Range] = {
    # Noise becomes normal in pairs.
    "channels": ("an even number, 2 or more", lambda v: v >= 2 and v % 2 == 0),
    "weight": AT_LEAST_0,
}


@dataclass(frozen=True)
class KLConfig:
    """A normal distribution with its own mean and variance for each number of a token."""

    channels: int = 16  # numbers in one token, even
    # Latent diffusion weighs the sum over all latents beside a sum over all pixels.
    weight: float = 1e-6  # of the divergence from the standard normal, nats, mean over the numbers of an image's tokens

    num_codes: ClassVar[int | None] = None
    sampled: ClassVar[bool] = True

    @property
    def num_inputs(self) -> int:
        """Means, and logarithms of variances."""
        return 2 * self.channels

    @property
    def num_values(self) -> int:
        """One draw of each."""
        return self.channels

    def check(self) -> None:
        """Raises ConfigError for settings out of range."""
        check_ranges(vars(self), _RANGES, "backbone.quantiser.")

    def build(self) -> KL:
        """The quantiser, which has no weights."""
        return KL(self)

    def flops(self, tokens: int) -> float:
        """No matrix product."""
        return 0.0


class KL(Quantiser):
    """Draws in float32, whatever the number format of the moments."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.weight = config.weight

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantised:
        """Moments (B, N, 2 * channels) and noise (B, N * channels) uniform in 0..1 as a draw, or as the mean."""
        mean, log_variance = latents.float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        losses = {"kl": self.weight * divergence.mean((1, 2))} if self.weight else {}
        if noise is None:
            return Quantised(mean, None, losses)
        normal = rearrange(box_muller(noise), "b (n c) -> b n c", n=mean.shape[1])
        return Quantised(mean + (log_variance / 2).exp() * normal, None, losses)


def box_muller(uniform: Tensor) -> Tensor:
    """Independent uniform numbers (B, 2 n) in [0, 1) as as many independent standard normal ones (Box and Muller)."""
    size, turn = uniform.chunk(2, dim=-1)
    radius, angle = (-2 * torch.log1p(-size)).sqrt(), 2 * math.pi * turn
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
