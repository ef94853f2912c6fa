"""What generation asks of a tokenizer: images as tokens in raster order, and back. Letters: B images, N tokens, one a
patch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from masking.mask import Grid


@dataclass(frozen=True)
class Kind:
    """What is known of a tokenizer without its weights."""

    patch_size: int  # side of the square of pixels that a token stands for
    num_codes: int | None  # ids are 0 to one less; None: tokens are continuous
    num_values: int  # numbers in one token: of its code, or the continuous token itself
    in_chans: int  # C
    sampled: bool = False  # whether a token is drawn from a distribution, by noise


class Tokenizer(nn.Module):
    """A map between patches and tokens, both ways."""

    patch_size: int
    in_chans: int  # C
    num_codes: int | None  # None: tokens are continuous
    num_values: int  # numbers in one token, or in its code

    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) uint8 as ids (B, N) int64, or as values (B, N, num_values) float32. noise
        (B, N * num_values), uniform in 0..1, draws tokens where they are sampled; None takes their mean."""
        raise NotImplementedError

    def moments(self, images: Tensor) -> Tensor:
        """What the tokens of images (B, C, H, W) uint8 are drawn from, where they are sampled: (B, N, 2 * num_values)
        float32, their means and the logarithms of their variances."""
        raise NotImplementedError(f"{type(self).__name__} samples no tokens")

    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, N, num_values) float32 of `moments`, by noise as in `tokens`."""
        raise NotImplementedError(f"{type(self).__name__} samples no tokens")

    def images(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Ids (B, N) or values (B, N, num_values) of all patches of grid as images (B, C, H, W) float32 in 0..1."""
        raise NotImplementedError
