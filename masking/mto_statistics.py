"""What MTO-R's losses measure, with gradients that keep no matrix of tokens by tokens: backward computes it again.

mass       of the row of a seen query, what lies on hidden keys: sum over j in M of A_ij
row        of the row of a hidden query, renormalised over the V seen keys: its entropy over log V
entropy    of a hidden token among itself and the seen ones: h of `mto.heterogeneity`

A is ordinary attention, softmax(q k^T / sqrt(E)), whatever the block itself attends by. Each is a mean over an image's
rows and heads, (B,) float32 at least. Seen tokens come first; letters as in mto.py, H heads, E channels of a head, R
rows, S keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from masking.mto import self_inclusive

_GROUP_BYTES = 1 << 21  # attention weights worked on at a time: what stays in a core's cache
_MASS, _ROW = range(2)


def attention_statistics(qkv: Tensor, num_seen: int, *, mass: bool, row: bool) -> Tensor:
    """mass and row of a projection qkv (B, L, 3, H, E), (2, B), with gradients to its queries and keys; zeros where it
    is not asked for, where nothing is hidden, and of row where a single token is seen."""
    some = qkv.shape[1] > num_seen
    wanted = (mass and some and num_seen > 0, row and some and num_seen > 1)
    if not any(wanted):
        return qkv.new_zeros(2, len(qkv), dtype=torch.promote_types(qkv.dtype, torch.float32))
    found: Tensor = _Statistics.apply(qkv, num_seen, wanted)  # type: ignore[no-untyped-call]
    return found


def self_entropy(z: Tensor, num_seen: int, tau: float) -> Tensor:
    """entropy of tokens z (B, L, D), (B,), with gradients to hidden tokens alone: seen ones are not drawn to or pushed
    away from anything. Zeros where nothing is hidden."""
    if z.shape[1] == num_seen:
        return z.new_zeros(len(z), dtype=torch.promote_types(z.dtype, torch.float32))
    found: Tensor = _SelfEntropy.apply(z, num_seen, tau)  # type: ignore[no-untyped-call]
    return found


class _Statistics(torch.autograd.Function):
    """qkv (B, L, 3, H, E), V, which of (mass, row) -> (2, B). With P a row's softmax, H its entropy and g the gradient
    of its statistic: dS = g P ([j in M] - mass), or -g P (log P + H) / log V."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_seen: int, wanted: tuple[bool, bool]) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.num_seen, ctx.wanted = num_seen, wanted
        (q, k), heads = _matrices(qkv), qkv.shape[3]
        out = q.new_zeros(2, len(qkv), dtype=torch.promote_types(qkv.dtype, torch.float32))
        for images, part in _groups(qkv, num_seen):
            for kind, (rows, keys) in _asked(num_seen, wanted):
                values, _ = _STATISTICS[kind](_scores(q[part, rows], k[part, keys]), num_seen)
                out[kind, images] = rearrange(values, "(b h) r -> b (h r)", h=heads).mean(1)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Rows are computed again."""
        (qkv,) = ctx.saved_tensors
        (q, k), heads = _matrices(qkv), qkv.shape[3]
        dq, dk = torch.empty_like(q), torch.empty_like(k)
        if not all(ctx.wanted):
            dq.zero_()
        if not ctx.wanted[_MASS]:
            dk.zero_()
        for images, part in _groups(qkv, ctx.num_seen):
            for kind, (rows, keys) in _asked(ctx.num_seen, ctx.wanted):
                asking, asked = q[part, rows], k[part, keys]
                share = repeat(grad[kind, images], "b -> (b h) 1 1", h=heads) / (heads * asking.shape[1])
                ds = _STATISTICS[kind](_scores(asking, asked), ctx.num_seen, share)[1].to(q.dtype)
                _put_product(ds, asked, dq[part, rows])
                dk[part, keys].baddbmm_(ds.mT, asking, beta=int(kind == _ROW))
        dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        dqkv[:, :, 0] = rearrange(dq.mul_(q.shape[-1] ** -0.5), "(b h) l e -> b l h e", h=heads)
        dqkv[:, :, 1] = rearrange(dk, "(b h) l e -> b l h e", h=heads)
        dqkv[:, :, 2] = 0
        return dqkv, None, None


class _SelfEntropy(torch.autograd.Function):
    """z (B, L, D), V, tau -> (B,)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, num_seen: int, tau: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.num_seen, ctx.tau = num_seen, tau
        hidden, seen, _ = _units(z, num_seen)
        return self_inclusive(hidden @ seen.mT, tau)[2].mean(1) / math.log(num_seen + 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With s the scores: dh/ds = -P (log P + H) / log(V + 1), and ds/dz_m = (z_v - cos z_m) / (tau |z_m|) of units
        z_v and z_m."""
        (z,) = ctx.saved_tensors
        hidden, seen, norms = _units(z, ctx.num_seen)
        cosines = hidden @ seen.mT
        logs, _, entropy = self_inclusive(cosines, ctx.tau)
        slopes = logs.exp().mul_(logs.add_(rearrange(entropy, "b m -> b m 1")))
        pulls = slopes @ seen - hidden * (slopes * cosines).sum(-1, keepdim=True)
        scale = -grad / (hidden.shape[1] * ctx.tau * math.log(ctx.num_seen + 1))
        dz = torch.zeros_like(z)
        dz[:, ctx.num_seen :] = pulls.mul_(rearrange(scale, "b -> b 1 1") / norms)
        return dz, None, None


def _asked(num_seen: int, wanted: tuple[bool, bool]) -> list[tuple[int, tuple[slice, slice]]]:
    """For each statistic that is wanted its number, and the places of its queries and keys."""
    seen, hidden = slice(0, num_seen), slice(num_seen, None)
    places = ((_MASS, (seen, slice(None))), (_ROW, (hidden, seen)))
    return [place for place, asked in zip(places, wanted, strict=True) if asked]


def _put_product(left: Tensor, right: Tensor, place: Tensor) -> None:
    """place (n, R, E), part of a larger tensor, becomes left (n, R, S) by right (n, S, E)."""
    if torch.compiler.is_compiling():  # it knows no product into a part
        place.copy_(torch.bmm(left, right))
    else:
        torch.bmm(left, right, out=place)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.bmm(q, k.mT)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _mass(scores: Tensor, num_seen: int, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of scores (n, V, L), overwritten: the mass of each row (n, V) and, where grad (n, 1, 1) is that of a row, the
    gradient of the scores."""
    weights = torch.ops.aten._softmax.out(scores, -1, False, out=scores)
    mass = weights[..., num_seen:].sum(-1, keepdim=True)
    if grad is not None:
        weights[..., :num_seen] *= -mass * grad
        weights[..., num_seen:] *= (1 - mass) * grad
    return mass[..., 0], weights


def _row(scores: Tensor, num_seen: int, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of scores (n, M, V), overwritten: the entropy of each row over log V (n, M), and the gradient as above."""
    logs = torch.ops.aten._log_softmax.out(scores, -1, False, out=scores)
    weights, size = logs.exp(), math.log(num_seen)
    entropy = -torch.linalg.vecdot(weights, logs)[..., None]
    if grad is not None:
        weights.mul_(logs.add_(entropy)).mul_(grad / -size)
    return entropy[..., 0] / size, weights


_STATISTICS = (_mass, _row)


def _matrices(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, scaled, and keys of qkv, a matrix a head (B * H, L, E): in float32 on a CPU, where that is the faster
    and scores are not rounded."""
    dtype = torch.promote_types(qkv.dtype, torch.float32) if qkv.device.type == "cpu" else qkv.dtype
    parts = rearrange(qkv[:, :, :2], "b l two h e -> two (b h) l e").to(dtype)
    return parts[0] * qkv.shape[-1] ** -0.5, parts[1]


def _units(z: Tensor, num_seen: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden (B, M, D) and seen (B, V, D) tokens of z at length 1, float32 at least, and lengths of the hidden ones
    (B, M, 1)."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp(min=1e-12)
    units = wide / norms
    return units[:, num_seen:], units[:, :num_seen], norms[:, num_seen:]


def _groups(qkv: Tensor, num_seen: int) -> list[tuple[slice, slice]]:
    """Slices of the images of qkv whose weights make about _GROUP_BYTES, and of their matrices; all on a GPU."""
    batch, length, heads = len(qkv), qkv.shape[1], qkv.shape[3]
    size = max(1, _GROUP_BYTES // (4 * heads * length * num_seen)) if qkv.device.type == "cpu" else batch
    images = [slice(start, min(start + size, batch)) for start in range(0, batch, size)]
    return [(part, slice(part.start * heads, part.stop * heads)) for part in images]
