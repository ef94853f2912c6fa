"""Who sees whom in a sequence of iLLaMA, beyond what one weighting can say. Letters: B images, L tokens, H heads, E
channels of a head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from masking.attention.op import cross_attention, self_attention
from masking.attention.weighting import PLAIN, Weighting


@dataclass(frozen=True)
class Sight:
    """The rule of attention that all of an encoder's masked blocks share."""

    weighting: Weighting = PLAIN
    first_sees_all: bool = False  # the first token is no subject of the mask as a query
    prefix_lengths: Tensor | None = None  # (B,) int: so many first tokens of an image see each other


def attend(qkv: Tensor, sight: Sight) -> Tensor:
    """Attention of a projection qkv (B, L, 3, H, E) to itself: (B, L, H, E)."""
    if sight.first_sees_all:
        first = cross_attention(qkv[:, :1, 0], qkv[:, :, 1:])
        others = self_attention(qkv, qkv.shape[1] - 1, replace(sight.weighting, offset=1))
        return torch.cat([first, others], dim=1)
    if sight.prefix_lengths is None:
        return self_attention(qkv, weighting=sight.weighting)
    # A token of the prefix sees the prefix, one behind it all that is not later: two members of the family.
    inside = self_attention(qkv, weighting=Weighting(key_lengths=sight.prefix_lengths))
    behind = self_attention(qkv, weighting=sight.weighting)
    in_prefix = torch.arange(qkv.shape[1], device=qkv.device) < sight.prefix_lengths[:, None]
    return torch.where(rearrange(in_prefix, "b l -> b l 1 1"), inside, behind)
