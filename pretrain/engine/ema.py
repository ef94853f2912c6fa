"""Exponential moving average of the fp32 master weights, kept where the optimizer keeps them: each rank has its share.

The decay warms up as min(decay, (1 + t) / (10 + t)) with t the updates made so far: early weights are forgotten soon.
A skipped step is no update: t, and so the average, stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """The average of flats, the tensors an optimizer updates; the same shapes, fp32, on the same device."""

    def __init__(self, decay: float, flats: Sequence[Tensor]) -> None:
        self.decay = decay
        self._flats = [flat.detach() for flat in flats]
        self._averages = [flat.detach().clone() for flat in flats]
        self._by_flat = {id(flat): average for flat, average in zip(flats, self._averages, strict=True)}

    def of(self, flat: Tensor) -> Tensor:
        """The average that belongs to flat."""
        return self._by_flat[id(flat)]

    def restart(self) -> None:
        """Begins anew from the weights as they are."""
        torch._foreach_copy_(self._averages, self._flats)

    @torch.no_grad()
    def update(self, updates: Tensor, flag: Tensor) -> None:
        """After a step: updates () is the optimizer's count, this step's included; flag () is 1 if it was skipped."""
        kept = torch.clamp((updates + 1) / (updates + 10), max=self.decay)
        weight = (1 - kept) * (1 - flag)
        if weight.device.type == "cpu":  # its value is at hand, and one call does all tensors
            torch._foreach_lerp_(self._averages, self._flats, float(weight))
        else:
            torch._foreach_lerp_(self._averages, self._flats, [weight] * len(self._flats))
