"""MTO-R, masked-token optimisation as reconstructed here: depth weights, what is kept from visible queries, and how
unlike the others masked tokens are. The paper (Choi et al., "Emerging Property of Masked Token for Effective
Pre-training", ECCV 2024) could not be read beyond its abstract; docs/mto-r.md says what of this is its own.

A sequence holds V tokens that are seen (class token, registers, visible patches) and behind them M that are hidden.
Letters: B images, L = V + M tokens, D width. z is a block's input after its norm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from masking.attention.weighting import PLAIN, Weighting

_SEEN, _HIDDEN, _EXCLUDED = range(3)  # classes of tokens, for the rule of attention


class Heterogeneity(NamedTuple):
    """How unlike the seen tokens hidden ones are, each (B,) float32, a mean over an image's hidden tokens.

    P_m is the softmax of cosines over tau, of a hidden token m with itself and all that is seen. A token of its own
    keeps its mass: pi near 1 and h near 0. One that equals several seen ones has a high h. (Entropy over seen tokens
    alone could not tell a token that is far from all from one that is near all.)"""

    self_mass: Tensor  # pi: P_m(m)
    entropy: Tensor  # h: the entropy of P_m over log(V + 1), 0 to 1
    distance: Tensor  # D: 1 - cosine, over seen and hidden ones in pairs


def early_weights(depth: int, power: float) -> tuple[float, ...]:
    """e_l = (1 - l / (depth - 1))^power of each block: 1 in the first, exactly 0 in the last; of a single block, 1."""
    return tuple((1 - _depth_share(block, depth)) ** power for block in range(depth))


def to_one(weights: tuple[float, ...]) -> tuple[float, ...]:
    """weights over their sum, which may be 0."""
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total > 0 else weights


def excluded_counts(depth: int, num_hidden: int, share: float) -> tuple[int, ...]:
    """How many hidden keys of an image visible queries do not see, block by block: share of them in the first, evenly
    fewer with depth, none in the last (a single block is a first one)."""
    return tuple(round(share * (1 - _depth_share(block, depth)) * num_hidden) for block in range(depth))


@torch.no_grad()
def drift(z: Tensor, start: Tensor) -> Tensor:
    """1 - cosine of hidden tokens z (B, M, D) and what they were at the first block, start (B, M, D): (B, M) float32.
    A token that has not moved has taken nothing in yet and says nothing ("semantically inconsequential")."""
    return 1 - F.cosine_similarity(z.float(), start.float(), dim=-1)


@torch.no_grad()
def exclusion(scores: Tensor, num_seen: int, count: int) -> Weighting:
    """The rule of attention that keeps from seen queries the count hidden keys of each image with the lowest scores
    (B, M) float, ties to the earlier one. Other rows are those of ordinary attention, and what a row loses is shared
    out among the keys it keeps."""
    if count == 0:
        return PLAIN
    ranks = scores.argsort(dim=1, stable=True)
    hidden = torch.full_like(ranks, _HIDDEN, dtype=torch.int8).scatter_(1, ranks[:, :count], _EXCLUDED)
    classes = F.pad(hidden, (num_seen, 0), value=_SEEN)
    before = torch.ones(3, 3, device=classes.device)
    before[_SEEN, _EXCLUDED] = 0
    return Weighting(query_classes=classes, key_classes=classes, before=before)


def heterogeneity(z: Tensor, num_seen: int, tau: float) -> Heterogeneity:
    """Of tokens z (B, L, D); zeros where nothing is hidden."""
    unit = F.normalize(z.float(), dim=-1)
    seen, hidden = unit[:, :num_seen], unit[:, num_seen:]
    if not hidden.shape[1]:
        nothing = z.new_zeros(len(z), dtype=torch.float32)
        return Heterogeneity(nothing, nothing, nothing)
    cosines = hidden @ seen.mT
    _, own, entropy = self_inclusive(cosines, tau)
    return Heterogeneity(own.exp().mean(1), entropy.mean(1) / math.log(num_seen + 1), (1 - cosines).mean((1, 2)))


def self_inclusive(cosines: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """P_m of cosines (B, M, V) of hidden with seen tokens: its logarithm at the seen ones (B, M, V) and at the token
    itself (B, M), and its entropy (B, M). Written for scores (cosine - 1) / tau, of which the token's own is 0 and the
    largest."""
    scores = (cosines - 1) / tau
    total = scores.exp().sum(-1).log1p()
    logs = scores - rearrange(total, "b m -> b m 1")
    return logs, -total, total - (logs.exp() * scores).sum(-1)


def _depth_share(block: int, depth: int) -> float:
    return block / max(depth - 1, 1)
