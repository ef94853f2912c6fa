"""Low-shot: the linear probe from a small, class-balanced share of the training labels, over several draws."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.evaluation.linear import fit_probe

SHARES = (0.01, 0.1)
DRAWS = 3


def draw(labels: Tensor, share: float, seed: int) -> Tensor:
    """Rows (k,) ascending: equally many of each class of labels (n,), share * n together, rounded down to whole images
    a class. Of one seed the draw of a smaller share is part of that of a larger one; of two seeds they are independent.
    Raises ConfigError where that is less than one image a class, or more than a class has."""
    rng = torch.Generator().manual_seed(seed)
    classes, counts = labels.unique(return_counts=True)
    each = int(share * len(labels) / len(classes) + 1e-9)  # 0.1 * 30 / 3 is one image, whatever floats say
    if each < 1:
        raise ConfigError(
            f"lowshot: {share:.0%} of {len(labels)} training images is less than one image for each of {len(classes)} "
            "classes; give it more training images, or leave lowshot out of the methods"
        )
    if each > int(counts.min()):
        raise ConfigError(
            f"lowshot: {share:.0%} of {len(labels)} training images is {each} a class, and the smallest class has "
            f"{int(counts.min())}; give it more images of that class, or leave lowshot out of the methods"
        )
    rows = []
    for label in classes:
        own = (labels == label).nonzero()[:, 0]
        rows.append(own[torch.randperm(len(own), generator=rng)[:each]])
    return torch.cat(rows).sort().values


def low_shot(
    x: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, share: float, draws: int = DRAWS
) -> tuple[float, float]:
    """Mean and standard deviation (over the draws, n - 1 below) of the accuracy 0..1 on asked (m, D) with truth (m,) of
    probes fitted to draws of x (n, D) with labels (n,); draw i has seed i."""
    right = []
    for seed in range(draws):
        rows = draw(labels, share, seed)
        right.append((fit_probe(x[rows], labels[rows]).predict(asked) == truth).double().mean())
    found = torch.stack(right)
    return float(found.mean()), float(found.std())
