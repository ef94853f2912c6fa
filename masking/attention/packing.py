"""Projections as layers write them: queries, keys and values in one tensor, in two, or in three.

One: qkv (B, L, 3, H, E). Two: q (B, L, H, E) and kv (B, S, 2, H, E). Three: q, k and v. Backward fills gradients of the
same form, so nothing has to be stacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split(parts: Sequence[Tensor], num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views q (B, num_queries, H, E), k and v (B, S, H, E); of a tensor that holds all three the last queries ask."""
    if len(parts) == 1:
        q, k, v = parts[0].unbind(2)
        return q if num_queries == q.shape[1] else q[:, q.shape[1] - num_queries :], k, v
    if len(parts) == 2:
        return parts[0], *parts[1].unbind(2)  # type: ignore[return-value]
    q, k, v = parts
    return q, k, v


def gradients(parts: Sequence[Tensor], num_queries: int) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """New tensors like parts, and their views as `split` gives them, to be filled; queries that do not ask get
    zeros."""
    grads = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in parts]
    if len(parts) == 1 and num_queries < parts[0].shape[1]:
        grads[0][:, : parts[0].shape[1] - num_queries, 0] = 0
    return grads, split(grads, num_queries)
