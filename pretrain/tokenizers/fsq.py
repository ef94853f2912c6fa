"""Finite scalar quantisation (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", section 3): each
channel of a latent is bounded and rounded to one of a few levels, and a token is the tuple of its levels.

There is no codebook to learn, nothing that could collapse, and no loss but that of the reconstruction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from pretrain.ranges import Range, check_ranges
from pretrain.tokenizers.quantiser import Quantised, Quantiser

_MARGIN = 1e-3  # what the outermost levels are drawn in by, so that rounding never leaves them
_RANGES: dict[str, Range] = {
    # With two levels the paper's shift is the inverse tanh of more than 1.
    "levels": ("one or more numbers of levels, each 3 or more", lambda v: len(v) > 0 and min(v) >= 3),
}


@dataclass(frozen=True)
class FSQConfig:
    """Rounding; the number of codes is the product of the levels."""

    levels: tuple[int, ...] = (8, 5, 5, 5)  # levels of each channel of a code, 3 or more

    sampled: ClassVar[bool] = False

    @property
    def num_codes(self) -> int:
        """Every tuple of levels is a code."""
        return math.prod(self.levels)

    @property
    def num_inputs(self) -> int:
        """A channel for each number of levels."""
        return len(self.levels)

    @property
    def num_values(self) -> int:
        """The same."""
        return len(self.levels)

    def check(self) -> None:
        """Raises ConfigError for levels that cannot be meant."""
        check_ranges(vars(self), _RANGES, "backbone.quantiser.")

    def build(self) -> FSQ:
        """The quantiser, which has no weights."""
        return FSQ(self)

    def flops(self, tokens: int) -> float:
        """No matrix product."""
        return 0.0


class FSQ(Quantiser):
    """Rounds in float32, whatever the number format of the latents."""

    levels: Tensor
    places: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        # Whole numbers, for `module.bfloat16()` rounds every float buffer.
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("places", levels.cumprod(0) // levels, persistent=False)

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantised:
        """Latents (B, N, channels) as codes in -1..1; noise is not used."""
        half = (self.levels - 1) * ((1 - _MARGIN) / 2)
        offset = (1 - self.levels % 2) * 0.5  # an even number of levels has no middle
        bounded = torch.tanh(latents.float() + torch.atanh(offset / half)) * half - offset
        rounded = bounded.detach().round()
        ids = ((rounded.long() + self.levels // 2) * self.places).sum(-1)
        # The difference is zero and carries the gradient: values are the codes to the bit.
        return Quantised((rounded + (bounded - bounded.detach())) / (self.levels // 2), ids, {})

    def values(self, ids: Tensor) -> Tensor:
        """The codes of ids (B, N) int64, (B, N, channels) float32."""
        steps = rearrange(ids, "b n -> b n 1") // self.places % self.levels - self.levels // 2
        return steps.float() / (self.levels // 2)
