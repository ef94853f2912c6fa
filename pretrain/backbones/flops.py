"""Arithmetic of transformer blocks. One multiply-add counts as 2; all figures are of one image's forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from masking.mask import Grid


@dataclass(frozen=True)
class Sizes:
    """What the arithmetic of an image depends on, beside the objective."""

    num_patches: int  # N
    num_visible: int  # K
    num_prefix: int  # class token and registers
    width: int  # D of the encoder
    depth: int  # blocks of the encoder
    num_values: int  # P, values in one patch
    block: Callable[..., float] | None = None  # an encoder's `block_flops`; None: as in a ViT
    grid: Grid | None = None  # of the patches, for objectives whose teacher is made for one
    num_codes: int = 0  # codes of a tokenizer, where patches are its tokens; 0: they are values
    embed: float | None = None  # FLOPs of what makes tokens of visible pixels; None: a linear layer

    @property
    def num_hidden(self) -> int:
        """M."""
        return self.num_patches - self.num_visible

    @property
    def embed_flops(self) -> float:
        """FLOPs of the patch projection for the visible patches, or of what stands in its place."""
        return 2 * self.num_visible * self.num_values * self.width if self.embed is None else self.embed

    def encoder_flops(self, num_patches: int, *, only_prefix: bool = False) -> float:
        """FLOPs of the encoder's blocks for so many patches and the prefix, patch projection not included; only_prefix:
        patches do not come out of the last one."""
        tokens = num_patches + self.num_prefix
        each = block_flops(tokens, self.width) if self.block is None else self.block(tokens)
        if not only_prefix:
            return self.depth * each
        if self.block is None:
            return (self.depth - 1) * each + last_block_flops(self.num_prefix, tokens, self.width)
        return (self.depth - 1) * each + self.block(tokens, self.num_prefix)


def block_flops(tokens: int, width: int) -> float:
    """FLOPs of a transformer block whose MLP is four times as wide."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def last_block_flops(queries: int, tokens: int, width: int) -> float:
    """FLOPs of a block that computes its queries' rows only."""
    return 20 * queries * width**2 + 4 * tokens * width**2 + 4 * queries * tokens * width
