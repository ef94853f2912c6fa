"""The value that says what is hidden. Letters: B images, N patches in the grid, K kept, M hidden, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Patches of an image, in raster order."""

    height: int  # patches in a column
    width: int  # patches in a row

    @property
    def num_patches(self) -> int:
        """N."""
        return self.height * self.width


@dataclass(frozen=True)
class Mask:
    """Which patches of each image are hidden; every image hides the same number, so that batches stay rectangular."""

    hidden: Tensor  # (B, N) bool, True: to be predicted
    ids_keep: Tensor  # (B, K) int64, visible patch ids, ascending
    ids_mask: Tensor  # (B, M) int64, hidden patch ids, ascending
    ids_restore: Tensor  # (B, N) int64, where each patch is in cat([visible, hidden])
    order: Tensor  # (B, N) int64, patch ids from most to least deserving to stay

    @classmethod
    def cut(cls, scores: Tensor, num_visible: int) -> Mask:
        """Keeps the num_visible patches of each image with the highest scores (B, N) float; ties go to the lower id."""
        return cls.from_order(scores.argsort(dim=1, descending=True, stable=True), num_visible)

    @classmethod
    def from_order(cls, order: Tensor, num_visible: int) -> Mask:
        """Keeps the first num_visible patches of order (B, N) int64. Cut at two places, an order gives nested masks."""
        if not 0 <= num_visible <= order.shape[1]:
            raise ValueError(f"num_visible={num_visible} of {order.shape[1]} patches; need 0 to {order.shape[1]}")
        hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, num_visible:], True)
        ids_restore = places_in_two_groups(~hidden, num_visible)
        raster = torch.arange(order.shape[1], device=order.device)
        ids = torch.empty_like(order).scatter_(1, ids_restore, raster.expand_as(order))
        return cls(hidden, ids[:, :num_visible], ids[:, num_visible:], ids_restore, order)

    @classmethod
    def of_nothing(cls, batch: int, grid: Grid, device: torch.device | str = "cpu") -> Mask:
        """Every patch of batch images is visible."""
        raster = torch.arange(grid.num_patches, device=device)
        return cls.from_order(raster.expand(batch, -1), grid.num_patches)

    @property
    def num_visible(self) -> int:
        """K."""
        return self.ids_keep.shape[1]

    @property
    def num_hidden(self) -> int:
        """M."""
        return self.ids_mask.shape[1]

    def keep(self, tokens: Tensor) -> Tensor:
        """Visible rows of tokens (B, N, D), in grid order: (B, K, D)."""
        return gather_rows(tokens, self.ids_keep)

    def restore(self, visible: Tensor, hidden_tokens: Tensor) -> Tensor:
        """Visible (B, K, D) and hidden (B, M, D) tokens back in grid order: (B, N, D)."""
        return gather_rows(torch.cat([visible, hidden_tokens], dim=1), self.ids_restore)

    def fill(self, visible: Tensor, mask_token: Tensor) -> Tensor:
        """Visible tokens (B, K, D) in grid order, the mask token (D values) everywhere else: (B, N, D)."""
        hidden_tokens = repeat(mask_token.reshape(-1), "d -> b m d", b=len(visible), m=self.num_hidden)
        return self.restore(visible, hidden_tokens.to(visible.dtype))

    def mean_over_hidden(self, values: Tensor) -> Tensor:
        """The mean of values (B, N) over the hidden patches of each image: (B,)."""
        return values.gather(1, self.ids_mask).mean(1)


def places_in_two_groups(first: Tensor, num_first: int) -> Tensor:
    """Where each entry stands, (B, N) int64, when those of first (B, N) bool, num_first in each row, go before the
    others and both keep their order. Counting does it; sorting again would cost as much as the first sort. Numbers are
    small and memory decides, so they stay in int16 where they fit."""
    num = first.shape[1]
    dtype = torch.int16 if 3 * num < 1 << 15 else torch.int32
    belongs = first.to(dtype)
    count = belongs.cumsum(1, dtype=dtype)
    index = torch.arange(num, device=first.device, dtype=dtype)
    place = (index + num_first) - count  # of the others; those of the first stand at count - 1
    return place.add_(count.mul_(2).sub_(index + (num_first + 1)).mul_(belongs)).long()


def gather_rows(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows ids (B, L) int64 of tokens (B, N, D): (B, L, D)."""
    return tokens.gather(1, rearrange(ids, "b l -> b l 1").expand(-1, -1, tokens.shape[2]))
