"""The tokenizer that is trained here: encoder, quantiser and decoder. To the rest of the system it is an encoder like
any other, whose tokens are what its quantiser hands to its decoder; it looks at whole images.

Pixels go in, and come out, in -1..1, whatever the mean and deviation of the data: a tokenizer outlives its dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from einops import rearrange
from torch import Tensor, nn

from masking.mask import Grid, gather_rows
from pretrain.backbones.base import Backbone
from pretrain.backbones.layers import run_block
from pretrain.ranges import AT_LEAST_1, Range, check_ranges
from pretrain.tokenizers.base import Kind, Tokenizer
from pretrain.tokenizers.conv import conv_flops, decoder, encoder, inner_flops
from pretrain.tokenizers.fsq import FSQConfig
from pretrain.tokenizers.quantiser import Quantised, QuantiserConfig
from pretrain.types import Features

_RANGES: dict[str, Range] = {
    "patch_size": ("a power of two, 2 or more", lambda v: v >= 2 and v & (v - 1) == 0),
    "width": ("a multiple of 4, above 0", lambda v: v > 0 and v % 4 == 0),
    "blocks": AT_LEAST_1,
}


@dataclass(frozen=True)
class ConvTokenizerConfig:
    """A convolutional autoencoder with tokens in the middle."""

    quantiser: QuantiserConfig = field(default_factory=FSQConfig)  # what tokens are
    patch_size: int = 4  # side of the square of pixels that a token stands for, a power of two
    width: int = 64  # channels at full size, a multiple of 4; twice as many at every smaller size
    blocks: int = 2  # residual blocks at each size, in encoder and decoder alike

    num_prefix: ClassVar[int] = 0
    has_class_token: ClassVar[bool] = False
    answers: ClassVar[tuple[str, ...]] = ("tokenizer",)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each size, from that of the image down."""
        return (self.width, *[2 * self.width] * (self.patch_size.bit_length() - 1))

    def kind(self, in_chans: int) -> Kind:
        """What generation needs to know of it."""
        inner = self.quantiser
        return Kind(self.patch_size, inner.num_codes, inner.num_values, in_chans, inner.sampled)

    def dimensions(self) -> tuple[int, int, int]:
        """(numbers in a token, 1, 1): all of it counts as one block."""
        return self.quantiser.num_values, 1, 1

    def check(self) -> None:
        """Raises ConfigError for a tokenizer that cannot be built."""
        check_ranges(vars(self), _RANGES, "backbone.")
        self.quantiser.check()

    def build(self, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]) -> ConvTokenizer:
        """The tokenizer with fresh weights; mean and std are not used."""
        return ConvTokenizer(self, grid, in_chans)

    def block_flops(self, tokens: int, queries: int | None = None) -> float:
        """FLOPs of everything but the first and the last convolution, for so many tokens of one image."""
        last, inner = self.widths[-1], self.quantiser
        around = conv_flops(last, inner.num_inputs, tokens) + conv_flops(inner.num_values, last, tokens)
        return tokens * inner_flops(self.widths, self.blocks) + around + inner.flops(tokens)

    def embed_flops(self, tokens: int, num_values: int) -> float:
        """FLOPs of the first convolution, or of the last, for so many tokens of num_values pixel values each."""
        return conv_flops(num_values, self.width, tokens)


class ConvTokenizer(Backbone, Tokenizer):
    """Encoder, quantiser and decoder; grids of any size pass."""

    def __init__(self, config: ConvTokenizerConfig, grid: Grid, in_chans: int) -> None:
        super().__init__()
        self.grid, self.patch_size, self.in_chans = grid, config.patch_size, in_chans
        self.mean = self.std = (0.5,) * in_chans  # (x - 0.5) / 0.5 is in -1..1
        self.num_prefix, self.checkpointing = 0, False
        self.num_codes, self.num_values = config.quantiser.num_codes, config.quantiser.num_values
        self.width = self.num_values
        self.encoder = encoder(in_chans, config.quantiser.num_inputs, config.widths, config.blocks)
        self.quantiser = config.quantiser.build()
        self.decoder = decoder(self.num_values, in_chans, config.widths, config.blocks)
        self.blocks, self.norm = nn.ModuleList([nn.Identity()]), nn.Identity()

    def quantise(self, images: Tensor, noise: Tensor | None = None) -> Quantised:
        """Images (B, C, H, W), uint8 or floats in -1..1, as tokens; noise as for `tokens`."""
        return self.quantiser(self._latents(images), noise)

    def _latents(self, images: Tensor) -> Tensor:
        pixels = images if images.is_floating_point() else images.float() / 127.5 - 1
        return rearrange(self._through(self.encoder, pixels), "b c h w -> b (h w) c")

    def decode(self, values: Tensor, grid: Grid) -> Tensor:
        """Values (B, N, num_values) of all patches of grid as images (B, C, H, W) float32, about 0..1."""
        latents = rearrange(values, "b (h w) c -> b c h w", h=grid.height)
        pixels = self._through(self.decoder, latents.contiguous())  # sums are those of one layout, whoever made values
        return (pixels.float() + 1) / 2

    def embed(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), uint8 or floats in -1..1, as what the decoder reads: (B, N, D), or those of ids."""
        values = self.quantise(images).values
        return values if ids is None else gather_rows(values, ids)

    def forward(
        self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = (), only_prefix: bool = False
    ) -> Features:
        """Tokens (B, L, D) as they are: what there is to compute, `embed` has computed."""
        return Features(tokens, 0, (tokens,) * len(layers))

    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) uint8 as ids (B, N) int64, or values (B, N, num_values) float32."""
        found = self.quantise(images, noise)
        return found.values if found.ids is None else found.ids

    def moments(self, images: Tensor) -> Tensor:
        """Means and logarithms of variances of the tokens of images (B, C, H, W) uint8: (B, N, 2 * num_values) float32.
        """
        return self._latents(images).float()

    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, N, num_values) float32 of `moments`."""
        return self.quantiser(moments, noise).values

    def images(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Ids (B, N) or values (B, N, num_values) as images (B, C, H, W) float32 in 0..1."""
        return self.decode(self.quantiser.values(tokens) if self.num_codes else tokens, grid).clamp(0, 1)

    def no_weight_decay(self) -> set[str]:
        """What the quantiser names."""
        return {f"quantiser.{name}" for name in self.quantiser.no_weight_decay()}

    def moving(self) -> set[str]:
        """What the quantiser names."""
        return {f"quantiser.{name}" for name in self.quantiser.moving()}

    def _through(self, parts: nn.Module, x: Tensor) -> Tensor:
        x = x.to(next(parts.parameters()).dtype)
        for part in parts.children():
            x = run_block(part, x, checkpointing=self.checkpointing)
        return x
