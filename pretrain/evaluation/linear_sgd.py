"""The published linear probe (MAE, appendix A.2): a linear head behind a BatchNorm without parameters, on frozen
features, by SGD with momentum 0.9, no weight decay, 10 % warm-up and a cosine. The learning rate is chosen on a
held-out fifth of the training split; the test split is not seen. Batches are of 256; the paper has 16384, under LARS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.evaluation.linear import held_out

RATES = (0.03, 0.1, 0.3, 1.0)  # lowest first
EPOCHS = 90  # the paper's
_BATCH, _WARM_UP, _EPS = 256, 0.1, 1e-6


@dataclass(frozen=True)
class SgdProbe:
    """A trained head and the learning rate it was trained with."""

    head: nn.Module
    rate: float

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """The class (n,) int64 of each row of features (n, D)."""
        scores: Tensor = self.head(features.float())
        return scores.argmax(dim=1)


def fit_sgd(
    features: Tensor, labels: Tensor, rates: tuple[float, ...] = RATES, epochs: int = EPOCHS, seed: int = 0
) -> SgdProbe:
    """The probe of features (n, D) and labels (n,) in 0..C-1, trained on all of them at the rate whose probe, trained
    without every fifth image of each class, classifies most of those; of equally good rates the lowest."""
    held = held_out(labels)
    if int((~held).sum()) < 2:
        raise ConfigError(f"linear-sgd was given {len(labels)} training images and needs at least 3; give it more")
    classes, best, found = int(labels.max()) + 1, -1, rates[0]
    for rate in rates:
        probe = train_at(features[~held], labels[~held], rate, classes, epochs, seed)
        right = int((probe.predict(features[held]) == labels[held]).sum())
        if right > best:
            best, found = right, rate
    return train_at(features, labels, found, classes, epochs, seed)


def train_at(features: Tensor, labels: Tensor, rate: float, classes: int, epochs: int, seed: int) -> SgdProbe:
    """The probe trained at one learning rate, in an order drawn from seed; the last part of a batch is left out."""
    rng = torch.Generator().manual_seed(seed)
    x, size = features.float(), min(_BATCH, len(features))
    linear = nn.Linear(x.shape[1], classes)
    nn.init.normal_(linear.weight, std=0.01, generator=rng)
    nn.init.zeros_(linear.bias)
    head = nn.Sequential(nn.BatchNorm1d(x.shape[1], affine=False, eps=_EPS), linear)
    solver = torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9)
    a_pass = len(x) // size
    with torch.enable_grad():
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=rng)
            for step in range(a_pass):
                solver.param_groups[0]["lr"] = rate * schedule((epoch * a_pass + step) / (epochs * a_pass))
                rows = order[step * size : (step + 1) * size]
                solver.zero_grad()
                F.cross_entropy(head(x[rows]), labels[rows]).backward()
                solver.step()
    return SgdProbe(head.eval(), rate)


def schedule(done: float) -> float:
    """The share of the highest learning rate when a share `done` of all steps is made."""
    if done < _WARM_UP:
        return done / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
