"""How many directions the features use (RankMe, Garrido et al. 2023, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of features (n, D), scaled to sum 1: 1 where all rows are multiples of
    one vector, min(n, D) where every direction is used alike. NaN where there are no rows or all are 0."""
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp()) if len(features) else float("nan")
