"""What stands between a tokenizer's encoder and its decoder. Letters: B images, N tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from pretrain.types import Losses


@dataclass(frozen=True)
class Quantised:
    """What became of an encoder's latents."""

    values: Tensor  # (B, N, num_values) float32, what the decoder reads; its gradient is that of the latents
    ids: Tensor | None  # (B, N) int64; None: values are continuous
    losses: Losses  # name -> (B,) float32, what the quantiser itself wants lowered


class Quantiser(nn.Module):
    """Makes tokens of latents."""

    if TYPE_CHECKING:

        def __call__(self, latents: Tensor, noise: Tensor | None = None) -> Quantised:
            """Latents (B, N, num_inputs), and where tokens are sampled uniform noise (B, N * num_values), or None."""

    def values(self, ids: Tensor) -> Tensor:
        """The codes of ids (B, N) int64, (B, N, num_values) float32: bit for bit what `forward` gave with them."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        return set()

    def moving(self) -> set[str]:
        """Names of float32 buffers that change as training goes on and no optimizer updates."""
        return set()

    def after_update(self, skipped: Tensor) -> None:
        """Follows the update just made; skipped () float32 is 1 where there was none. Nothing waits for the device."""


class QuantiserConfig(Protocol):
    """A frozen dataclass beside its quantiser; its fields are its settings."""

    @property
    def num_codes(self) -> int | None:
        """How many ids there are; None: tokens are continuous."""
        ...

    @property
    def num_inputs(self) -> int:
        """Channels that it wants of the encoder."""
        ...

    @property
    def num_values(self) -> int:
        """Channels that it hands to the decoder: numbers in one token, or in its code."""
        ...

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn from a distribution, by noise."""
        ...

    def check(self) -> None:
        """Raises ConfigError for the first setting that cannot be meant."""
        ...

    def build(self) -> Quantiser:
        """The quantiser with fresh weights, if any."""
        ...

    def flops(self, tokens: int) -> float:
        """FLOPs of its forward for so many tokens of one image."""
        ...
