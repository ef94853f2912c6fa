"""Linear probe: multinomial logistic regression on frozen, cached features, solved to its optimum.

A convex problem with one solution needs no learning rate, schedule or seed: L-BFGS finds it, in float64, on the CPU.
The only choice left, the strength of L2, is made on a held-out fifth of the training split; the test split is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of L2, on standardised features, strongest first
_HOLD_OUT_EVERY = 5


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe; it standardises what it is given as it did its training features."""

    weight: Tensor  # (C, D) float64
    bias: Tensor  # (C,) float64
    mean: Tensor  # (D,) float64
    scale: Tensor  # (D,) float64
    strength: float  # of L2

    def predict(self, features: Tensor) -> Tensor:
        """The class (n,) int64 of each row of features (n, D); of equal scores the lower class."""
        return F.linear((features.double() - self.mean) / self.scale, self.weight, self.bias).argmax(dim=1)


def fit_probe(features: Tensor, labels: Tensor, strengths: tuple[float, ...] = STRENGTHS) -> LinearProbe:
    """The probe of features (n, D) and labels (n,) in 0..C-1, with the strength whose probe, fitted without every fifth
    image of each class, classifies most of those; of equally good ones the strongest."""
    num_classes = int(labels.max()) + 1
    if len(strengths) == 1:
        return fit_at(features, labels, strengths[0], num_classes)
    held = held_out(labels)
    best, start, found = -1, None, strengths[0]
    for strength in sorted(strengths, reverse=True):
        start = fit_at(features[~held], labels[~held], strength, num_classes, start)
        right = int((start.predict(features[held]) == labels[held]).sum())
        if right > best:
            best, found = right, strength
    return fit_at(features, labels, found, num_classes)


def fit_at(
    features: Tensor, labels: Tensor, strength: float, num_classes: int, start: LinearProbe | None = None
) -> LinearProbe:
    """The probe that minimises mean cross entropy + strength / 2 * sum of squared weights; the bias is free. start only
    shortens the way."""
    features = features.double()
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    x = (features - mean) / scale
    shape = (num_classes, x.shape[1])
    weight = (start.weight.clone() if start else x.new_zeros(shape)).requires_grad_()
    bias = (start.bias.clone() if start else x.new_zeros(num_classes)).requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        history_size=30,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + strength / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return LinearProbe(weight.detach(), bias.detach(), mean, scale, strength)


def held_out(labels: Tensor) -> Tensor:
    """(n,) bool: every fifth image of each class, in the order given."""
    held = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        held[(labels == label).nonzero()[_HOLD_OUT_EVERY - 1 :: _HOLD_OUT_EVERY, 0]] = True
    if not held.any():
        held[-1] = True  # fewer than five images of every class: one decides, better than none
    return held
