"""Weighted nearest neighbours on frozen features (Wu et al. 2018, section 3.4; DINO's protocol): exact, no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 256  # queries compared at once: 256 x 1e6 similarities are 1 GB


def knn_predict(
    train: Tensor,
    labels: Tensor,
    queries: Tensor | None = None,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """The class (n,) int64 of each row of queries (n, D), by the votes exp(cosine similarity / temperature) of its k
    nearest rows of train (m, D) with labels (m,) in 0..C-1. queries=None asks of each row of train, which then never
    votes for itself.

    Ties: of equally near rows the first in train comes first; of classes with equal votes the lower wins. At most as
    many neighbours as there are vote, so k may be larger than the training set.
    """
    leave_one_out = queries is None
    train = F.normalize(train.float(), dim=1)
    queries = train if queries is None else F.normalize(queries.float(), dim=1)
    k = min(k, len(train) - leave_one_out)
    if k < 1:
        raise ValueError(f"{len(train)} training images leave no neighbour; kNN needs at least {1 + leave_one_out}")
    one_hot = F.one_hot(labels, int(labels.max()) + 1).float()
    predicted = []
    for start in range(0, len(queries), _CHUNK):
        similarity = queries[start : start + _CHUNK] @ train.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-torch.inf)
        ids = _nearest(similarity, k)
        votes = (similarity.gather(1, ids) / temperature).sub(1 / temperature).exp()
        predicted.append(torch.einsum("nk,nkc->nc", votes, one_hot[ids]).argmax(dim=1))
    return torch.cat(predicted) if predicted else labels[:0]


def _nearest(similarity: Tensor, k: int) -> Tensor:
    """Columns (n, k) of the k largest of each row, ascending. topk alone picks any of several equal values."""
    least = similarity.topk(k, dim=1).values[:, -1:]
    above, equal = similarity > least, similarity == least
    taken = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return taken.nonzero()[:, 1].reshape(len(similarity), k)
