"""The values that travel from the loader to the loss. Letters as in the whole project: B images, N patches in the
grid, K kept, M hidden (N = K + M), D width, P values in one patch (in_chans * p * p)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VOID = 255  # in a map of classes: a pixel of no class


@dataclass(frozen=True)
class BadSample:
    """A slot of the stream whose image could not be used: it keeps its place and weighs nothing."""

    position: int  # in the endless stream
    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank, as the loader hands it over; only the tensors move to the device."""

    images: Tensor  # (B, C, H, W) uint8; zeros where weight is 0
    labels: Tensor  # (B,) int64, -1 where the sample has none or is bad
    weight: Tensor  # (B,) float32, 1 or 0: 0 marks a bad sample
    positions: Tensor  # (B,) int64, the sample's place in the endless stream
    digest: int  # sum over the samples of a keyed hash, modulo 2**64
    bad: tuple[BadSample, ...] = ()
    # (B, G, 4) float32, left, top, right, bottom in shares of the crop, zeros where there are fewer; None: not read
    boxes: Tensor | None = None
    maps: Tensor | None = None  # (B, H, W) uint8, class of every pixel, VOID for none; None: not read


@dataclass(frozen=True)
class Labels:
    """What images show: one class each, or shares of two where images were mixed; and where."""

    first: Tensor  # (B,) int64, -1 where the sample has none
    second: Tensor  # (B,) int64, as first where nothing was mixed in
    share: Tensor  # (B,) float32, of first; the rest is of second
    pixels: Tensor | None = None  # (B, H, W) uint8, class of every pixel, VOID for none; None: no maps are read

    @classmethod
    def single(cls, labels: Tensor, pixels: Tensor | None = None) -> Labels:
        """labels (B,) int64 of images that were not mixed, and their maps (B, H, W) uint8."""
        return cls(labels, labels, torch.ones_like(labels, dtype=torch.float32), pixels)


@dataclass(frozen=True)
class Target:
    """What must be predicted, made without gradient before the mask is drawn."""

    value: Tensor | None = None  # (B, N, ...), or None where the objective reads it from the images
    guidance: Tensor | None = None  # (B, N) float importance for mask strategies that ask for it
    labels: Labels | None = None  # for objectives that predict classes
    layers: tuple[Tensor, ...] = ()  # (B, 1 + N, D) each, a teacher's states of the levels that are compared


@dataclass(frozen=True)
class Features:
    """Output of a backbone: prefix tokens (class token, registers) first, then the patches it was given."""

    sequence: Tensor  # (B, num_prefix + L, D)
    num_prefix: int
    layers: tuple[Tensor, ...] = ()  # the same shape, after the blocks that were asked for

    @property
    def prefix(self) -> Tensor:
        """Class token and registers, (B, num_prefix, D)."""
        return self.sequence[:, : self.num_prefix]

    @property
    def tokens(self) -> Tensor:
        """Patch tokens, (B, L, D), in the order of the ids the backbone was given."""
        return self.sequence[:, self.num_prefix :]


Losses = dict[str, Tensor]  # name -> (B,) float32, one value an image: the step weighs and averages them
