"""ReCAP: keys and values of a full pass, used again by passes over a few positions (Liu et al., "Plug-and-Play Context
Feature Reuse for Efficient Masked Generation", 2025).

Between two decoding steps the keys and values of tokens that were not touched hardly change. So a *full* step chooses
every position that its group will decode, and u *local* steps follow whose queries are those targets (and the extra
tokens in front) alone: all others, decoded or not, are there as the keys and values that the full step left. Those of
the targets are written over in place, so nothing is gathered and nothing concatenated.

Letters: B images, N positions, T steps, S slots of a cache, q recomputed ones, H heads, E = D / H."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from masking.attention.op import cross_attention, self_attention

Decay = Literal["cosine", "arccos", "linear", "square", "power"]  # of the share that is still masked


@dataclass(frozen=True)
class Plan:
    """Which of T steps are full passes over everything, and which are local."""

    steps: int  # T
    full_first: int = 0  # P: so many steps at the start are full ones
    local: int = 0  # u: local steps behind each full one after them; 0: the base sampler

    def check(self, num_positions: int) -> None:
        """ValueError, in one sentence, for a plan that so many positions do not allow."""
        if not 1 <= self.steps <= num_positions:
            raise ValueError(f"{self.steps} steps for {num_positions} tokens to generate; use 1 to {num_positions}")
        if self.full_first < 0 or self.local < 0:
            raise ValueError(f"full_first={self.full_first} and local={self.local}; both must be 0 or more")
        if self.local and self.full_first >= self.steps:
            raise ValueError(
                f"no step is left for local passes: the first {self.full_first} of {self.steps} steps are full; use "
                f"fewer than {self.steps}, or no local steps"
            )

    def groups(self, counts: tuple[int, ...]) -> list[tuple[int, ...]]:
        """counts, a number of positions for each step, cut into groups: a full step and the local ones behind it."""
        found, step = [], 0
        while step < len(counts):
            size = 1 + (self.local if step >= self.full_first else 0)
            found.append(counts[step : step + size])
            step += size
        return found

    def cost(
        self, counts: tuple[int, ...], num_extra: int, num_given: int = 0, *, keeps_extra: bool = False
    ) -> float:
        """Arithmetic of all passes in full ones, where a local pass recomputes its targets and, unless it keeps them,
        num_extra extra tokens: it costs its share of the queries, whatever the width (the keys are always all of them,
        given tokens too)."""
        length = sum(counts) + num_extra + num_given
        again = 0 if keeps_extra else num_extra
        return sum(1 + (len(group) - 1) * (sum(group) + again) / length for group in self.groups(counts))


def still_masked(share: float, decay: Decay) -> float:
    """What share of the positions is still masked after a share of the steps, 1 down to 0 (MaskGIT, section 3.2)."""
    if decay == "cosine":
        return math.cos(math.pi / 2 * share)
    if decay == "arccos":
        return math.acos(min(share, 1.0)) / (math.pi / 2)
    return 1 - share ** {"linear": 1.0, "square": 2.0, "power": 2.5}[decay]


def decoding_counts(num_positions: int, steps: int, decay: Decay = "cosine") -> tuple[int, ...]:
    """How many positions each step decodes, all of them at the end and at least one in each.

    As in MaskGIT and MAR a step leaves floor(N * share) masked, but at least one fewer than the step before; "power" is
    ReCAP's MaskGIT-r, 1 - r^2.5, in which a step that would decode none takes one from the last."""
    if decay not in get_args(Decay):
        raise ValueError(f"no schedule {decay!r}; there are {', '.join(get_args(Decay))}")
    Plan(steps).check(num_positions)
    left = [num_positions]
    for step in range(1, steps):
        rounded = math.floor(num_positions * still_masked(step / steps, decay) + 1e-9)
        left.append(rounded if decay == "power" else max(steps - step, min(left[-1] - 1, rounded)))
    counts = [before - after for before, after in zip(left, [*left[1:], 0], strict=True)]
    if decay == "power":
        counts = [max(1, count) for count in counts[:-1]]
        counts.append(num_positions - sum(counts))
        if counts[-1] < 1:  # more steps than the law can fill: take from the largest, the latest first
            counts = _spread(counts, num_positions)
    assert sum(counts) == num_positions and min(counts) >= 1
    return tuple(counts)


class KeyValues:
    """The keys and values of one stack of attention layers, and what its next pass does with them."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []  # (B, S, 2, H, E) each, slot by slot
        self._slots: Tensor | None = None
        self._seen: int | None = None
        self._room = 0

    def record(self, room: int = 0) -> KeyValues:
        """The next pass is a full one: it leaves its keys and values here, with room for so many more behind them."""
        self.layers, self._slots, self._seen, self._room = [], None, None, room
        return self

    def refresh(self, slots: Tensor, seen: int | None = None) -> KeyValues:
        """The next pass is a local one over slots (B, q) int64: it writes over their keys and values, and sees the
        first so many slots, or all."""
        self._slots, self._seen = slots, seen
        return self

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Attention of layer number layer for a projection qkv (B, L, 3, H, E), L being all slots in a full pass and q
        in a local one: (B, L, H, E)."""
        if self._slots is None:
            self.layers.append(_with_room(qkv[:, :, 1:], self._room))
            return self_attention(qkv)
        cache = self.layers[layer]
        rows = rearrange(torch.arange(len(qkv), device=qkv.device), "b -> b 1")
        cache[rows, self._slots] = qkv[:, :, 1:]
        return cross_attention(qkv[:, :, 0], cache[:, : self._seen])


def _with_room(keys_values: Tensor, room: int) -> Tensor:
    if not room:
        return keys_values
    batch, length, *rest = keys_values.shape
    roomy = keys_values.new_zeros(batch, length + room, *rest)
    roomy[:, :length] = keys_values
    return roomy


def _spread(counts: list[int], total: int) -> list[int]:
    while sum(counts) > total or counts[-1] < 1:
        if counts[-1] < 1:
            counts[-1] = 1
        largest = max(range(len(counts)), key=lambda step: (counts[step], step))
        if sum(counts) > total:
            counts[largest] -= 1
    return counts


def halton_order(height: int, width: int) -> list[int]:
    """Raster ids of a grid in the order in which the two-dimensional Halton sequence (bases 2 and 3) first meets them:
    early positions are spread evenly (Besnier et al., "Halton Scheduler for Masked Generative Image Transformer")."""
    found: dict[int, None] = {}
    index = 1
    while len(found) < height * width:
        row, column = int(_radical_inverse(index, 2) * height), int(_radical_inverse(index, 3) * width)
        found.setdefault(row * width + column)
        index += 1
    return list(found)


def _radical_inverse(index: int, base: int) -> float:
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * scale
        scale /= base
    return value
