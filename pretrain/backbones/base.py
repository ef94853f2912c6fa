"""What the rest of the system asks of an encoder and of its config. Letters: B images, N patches, L tokens, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

from masking.mask import Grid
from pretrain.types import Features


class Backbone(nn.Module):
    """An encoder over any subset of an image's patches; what it owns beside these attributes is its own affair."""

    width: int  # D
    num_prefix: int  # class token and registers: they come out in front of the patches, wherever they went in
    patch_size: int
    grid: Grid
    in_chans: int  # C
    mean: tuple[float, ...]  # per channel, of values in 0..1: what `embed` normalises by
    std: tuple[float, ...]
    checkpointing: bool  # recompute blocks in backward
    blocks: nn.ModuleList
    norm: nn.Module  # after the last block, each token by itself

    if TYPE_CHECKING:

        def __call__(
            self, tokens: Tensor, ids: Tensor | None = None, *, layers: Sequence[int] = (), only_prefix: bool = False
        ) -> Features:
            """Tokens (B, L, D) of patches ids (B, L), ascending, through the blocks; ids None means the whole grid.
            only_prefix: nobody asks for patches, and none come out."""

    def embed(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), uint8 or normalised floats, to tokens without positions: (B, N, D), or those of ids."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, beside norms and biases, that weight decay must leave alone."""
        return set()

    def moving(self) -> set[str]:
        """Names of float32 buffers that `at_step` sets: part of a checkpoint's state, never of the optimizer's."""
        return set()

    def at_step(self, step: int, total_steps: int, steps_per_epoch: float) -> dict[str, float]:
        """Sets what depends on the step about to be trained, without waiting for the device, and says it by name for
        the metrics; nothing in most encoders."""
        return {}


class BackboneConfig(Protocol):
    """A frozen dataclass beside its encoder; its fields are its settings."""

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        ...

    @property
    def num_prefix(self) -> int:
        """Tokens that belong to no patch: class token and registers."""
        ...

    @property
    def has_class_token(self) -> bool:
        """Whether the first of the prefix tokens is a class token."""
        ...

    @property
    def answers(self) -> tuple[str, ...]:
        """What else its encoder's forward takes, for objectives that ask for it: "questions" (num_queries), "prefix"
        (prefix_lengths), see illama.py; "treatment", for MTO-R, see vit.py; "tokenizer", where it is one that can be
        trained. And "class_token", where it has one."""
        ...

    def dimensions(self) -> tuple[int, int, int]:
        """(width, depth, heads)."""
        ...

    def check(self) -> None:
        """Raises ConfigError for the first setting, or combination, that cannot be meant."""
        ...

    def build(self, grid: Grid, in_chans: int, mean: Sequence[float], std: Sequence[float]) -> Backbone:
        """The encoder with fresh weights; mean and std are per channel, of pixel values in 0..1."""
        ...

    def block_flops(self, tokens: int, queries: int | None = None) -> float:
        """FLOPs of one block's forward for so many tokens of one image; queries: of a last block where only so many
        prefix tokens come out."""
        ...


@runtime_checkable
class Convolutional(Protocol):
    """The config of an encoder that begins with a convolution in place of a linear layer on patches."""

    def embed_flops(self, tokens: int, num_values: int) -> float:
        """FLOPs of that convolution for so many tokens of one image, of num_values pixel values each."""
        ...
