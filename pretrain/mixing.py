"""Mixup and cutmix: an image is trained on together with another of its batch (Zhang et al., "mixup: Beyond Empirical
Risk Minimization", section 2; Yun et al., "CutMix", section 3.1).

What is done to row j of the global batch follows from (seed, step, j, B) alone. Its partner is row j + B / 2 modulo B,
which the same rank holds, n / 2 of its own n rows further on; so neither ranks nor accumulation change anything. Each
row has numbers of its own, drawn on the host, where nothing waits; pixels are mixed on the device and stay uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from masking.rng import prf
from pretrain.data.settings import DataConfig
from pretrain.types import Batch, Labels


@dataclass(frozen=True)
class Draws:
    """What is to be done to some rows; a share of 1 leaves a row as it is."""

    share: NDArray[np.float32]  # (n,) of the row's own image; the rest is its partner's
    boxes: NDArray[np.int64]  # (n, 4) top, bottom, left, right, pixels: what cutmix replaces; all 0 elsewhere

    def rows(self, chosen: NDArray[np.int64] | slice) -> Draws:
        """The draws of some of these rows."""
        return Draws(self.share[chosen], self.boxes[chosen])


@dataclass(frozen=True)
class Mixing:
    """How images are mixed. alpha 0 turns a kind off."""

    mixup: float  # of Beta(alpha, alpha), the distribution of mixup's share
    cutmix: float  # the same for cutmix
    prob: float  # of a row to be mixed at all
    switch_prob: float  # of cutmix where both are on

    @classmethod
    def of(cls, data: DataConfig) -> Mixing | None:
        """As data's settings have it; None where neither kind is on."""
        if not (data.mixup or data.cutmix):
            return None
        return cls(data.mixup, data.cutmix, data.mix_prob, data.mix_switch_prob)

    def draw(self, seed: int, step: int, num_rows: int, size: tuple[int, int]) -> Draws:
        """What is done to each row of a global batch of num_rows images of this (height, width), in step."""
        rng = np.random.RandomState(np.array(divmod(prf(seed, "mix", step), 1 << 32), np.uint32))
        blended, left = (rng.beta(alpha or 1, alpha or 1, num_rows) for alpha in (self.mixup, self.cutmix))
        cut_prob = self.switch_prob if self.mixup and self.cutmix else float(self.cutmix > 0)
        cuts = rng.random_sample(num_rows) < cut_prob
        mixes = rng.random_sample(num_rows) < self.prob
        at = rng.random_sample((num_rows, 2))
        boxes = cut_boxes(left, at, size) * (cuts & mixes)[:, None]
        share = np.where(cuts, kept_share(boxes, size), blended)
        return Draws(np.where(mixes, share, 1).astype(np.float32), boxes)


def cut_boxes(share: NDArray[np.float64], at: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Boxes (n, 4) top, bottom, left, right, pixels, of the shape of an image of this (height, width) and with 1 -
    share (n,) of its area, around a pixel at (n, 2) in shares of the image; what lies outside is cut off (CutMix,
    eq. 2)."""
    extent = np.array(size)
    sides = (extent * np.sqrt(1 - share)[:, None]).astype(np.int64)
    centre = (at * extent).astype(np.int64)
    low, high = (np.clip(end, 0, extent) for end in (centre - sides // 2, centre + (sides + 1) // 2))
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)


def kept_share(boxes: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.float64]:
    """The share (n,) of an image of this (height, width) that is outside its box (n, 4): cutmix's share, since a box
    that was cut off at the border takes less than was drawn."""
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    kept: NDArray[np.float64] = 1 - area / (size[0] * size[1])
    return kept


class MixedBatches:
    """A step's micro-batches of one rank, each image mixed with its partner, which may be in another micro-batch."""

    def __init__(
        self, batches: Sequence[Batch], mixing: Mixing, seed: int, step: int, rank: int, world: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._images = torch.cat([batch.images.to(device, non_blocking=True) for batch in batches])
        self._size, num_rows = len(batches[0].images), len(self._images)
        self._partner = np.roll(np.arange(num_rows), -(num_rows // 2))
        self._labels = torch.cat([batch.labels for batch in batches])
        draws = mixing.draw(seed, step, num_rows * world, (self._images.shape[2], self._images.shape[3]))
        good = torch.cat([batch.weight for batch in batches]).numpy() > 0
        self._draws = whole_where(~(good & good[self._partner]), draws.rows(slice(rank, None, world)))

    def at(self, micro: int) -> tuple[Tensor, Labels]:
        """Images (B, C, H, W) uint8 and labels of a micro-batch, on the device."""
        own = np.arange(micro * self._size, (micro + 1) * self._size)
        draws, device = self._draws.rows(own), self._images.device
        own_ids, partner_ids = torch.from_numpy(own), torch.from_numpy(self._partner[own])
        share, boxes = (_sent(torch.from_numpy(part), device) for part in (draws.share, draws.boxes))
        images = mix(self._images[own[0] : own[-1] + 1], self._images[_sent(partner_ids, device)], share, boxes)
        first, second = (_sent(self._labels[ids], device) for ids in (own_ids, partner_ids))
        return images, Labels(first, second, share)


def whole_where(alone: NDArray[np.bool_], draws: Draws) -> Draws:
    """draws, but rows alone (n,) keep their image whole: what is bad must not leak into its partner."""
    return Draws(np.where(alone, np.float32(1), draws.share), draws.boxes * ~alone[:, None])


def mix(images: Tensor, partners: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
    """images (B, C, H, W) uint8 with partners', alike: where a row has a box (B, 4) int64 the partner's pixels in it,
    elsewhere share (B,) of its own values and the rest of the partner's, rounded: (B, C, H, W) uint8."""
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    top, bottom, left, right = rearrange(boxes, "b side -> side b 1")
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    inside = rearrange(rows, "b h -> b 1 h 1") & rearrange(columns, "b w -> b 1 1 w")
    whole = rearrange((bottom <= top) | (right <= left), "b 1 -> b 1 1 1")
    own = torch.where(whole, rearrange(share, "b -> b 1 1 1"), (~inside).float())
    return (images * own + partners * (1 - own)).round_().to(torch.uint8)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, non_blocking=True)
