"""Regularised mask tuning (Zheng et al., "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained
Vision-Language Models"): the weights of attention stay as they are, and a score each decides which of them count.

The gradient reaches a score straight through the decision: that of its weight, times the weight. It may also be held
against the gradient of forgetting, here the distance of the encoder's features to those it gave when nothing was
masked: an element that lowers the loss and raises that distance is dropped with the probability to which it does
(section 3.3). Autograd hands both gradients over at once, for a weight goes out twice: once for each loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TASK, FORGETTING, FROZEN = 0, 1, 2  # what a forward is for


class ScoredMask(nn.Module):
    """Turns a frozen matrix into the weights of it whose score is above the threshold.

    margins are scores less the threshold, so that what decides is a sign, which no number format rounds away."""

    def __init__(self, shape: torch.Size, margin: float, dropout: float) -> None:
        super().__init__()
        self.margins = nn.Parameter(torch.full(shape, margin))
        self.dropout = dropout
        self.purpose = TASK
        self._pair: tuple[Tensor, Tensor] | None = None  # of one forward

    def open(self, purpose: int) -> None:
        """What the forwards from here on are for; TASK begins a new pair of weights."""
        if purpose == TASK:
            self._pair = None
        self.purpose = purpose

    def forward(self, base: Tensor) -> Tensor:
        """base, any float dtype, with zeros where the score is too low; for the frozen encoder, base itself."""
        if self.purpose == FROZEN:
            return base
        if self._pair is None:
            self._pair = _Masked.apply(self.margins, base, self.dropout)  # type: ignore[no-untyped-call]
        weight = self._pair[self.purpose]
        if not (self.dropout and self.training):
            self._pair = None
        return weight


def masked(base: Tensor, margins: Tensor) -> Tensor:
    """base where margins are above 0, else 0."""
    return torch.where(margins > 0, base, torch.zeros_like(base))


def keep_probability(task: Tensor, forgetting: Tensor) -> Tensor:
    """P = (1 + sgn(g_a) (g_a + g_b) / (|g_a| + |g_b|)) / 2 for gradients of the task g_a and of forgetting g_b of one
    shape: 1 where they agree, 1/2 where they are opposite and equal, 0 where the second outweighs all of the first.
    Where both are 0 it is 1, and nothing depends on it."""
    size = task.abs() + forgetting.abs()
    agreement = task.sign() * (task + forgetting) / torch.where(size > 0, size, torch.ones_like(size))
    return torch.where(size > 0, (1 + agreement) / 2, torch.ones_like(size))


class _Masked(torch.autograd.Function):
    """(weight for the task's loss, the same for the distance to the frozen encoder)."""

    @staticmethod
    def forward(ctx: Any, margins: Tensor, base: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(base)
        ctx.dropout = dropout
        weight = masked(base, margins)
        return weight, weight.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, task: Tensor, forgetting: Tensor) -> tuple[Tensor, None, None]:
        """The random numbers are torch's own, which the step seeds, as for dropout."""
        (base,) = ctx.saved_tensors
        if ctx.dropout:
            kept = keep_probability(task.float(), forgetting.float()) > torch.rand_like(task, dtype=torch.float32)
            task = task * (1 - ctx.dropout + ctx.dropout * kept).to(task.dtype)
        return task * base, None, None
