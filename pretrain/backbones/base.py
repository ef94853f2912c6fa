"""What the rest of the system asks of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from masking.mask import Grid
from pretrain.types import Features


class Backbone(Protocol):
    """An nn.Module. Letters: B images, L tokens it is given, D width."""

    width: int  # D
    num_prefix: int  # class token and registers, in front of the patches
    patch_size: int
    grid: Grid
    in_chans: int  # C
    mean: tuple[float, ...]  # per channel, of values in 0..1: what `embed` normalises by
    std: tuple[float, ...]
    checkpointing: bool  # recompute blocks in backward

    def embed(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), uint8 or normalised floats, to tokens without positions: (B, N, D), or those of ids."""
        ...

    def __call__(self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = ()) -> Features:
        """Tokens (B, L, D) of patches ids (B, L), ascending, through the blocks; ids None means the whole grid."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, beside norms and biases, that weight decay must leave alone."""
        ...
