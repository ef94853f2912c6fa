"""Attention under any weighting by batched matrix products, with its backward written out: the branch for CPUs, and for
a GPU without Triton. Only the softmax is kept for backward, not its product with the gate; images are worked on in
groups that stay in a core's cache."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from masking.attention.packing import gradients, split
from masking.attention.weighting import Weighting, dense

_GROUP_BYTES = 1 << 22  # attention weights worked on at a time: what stays in a core's cache


def weighted_attention(parts: list[Tensor], num_queries: int, weighting: Weighting) -> Tensor:
    """parts as in packing.py: (B, num_queries, H, E), with gradients to parts and to the weighting's tensors."""
    q, k, _ = split(parts, num_queries)
    bias, gate = dense(weighting, num_queries, k.shape[1], q)
    lengths = (weighting.query_lengths, weighting.key_lengths)
    return WeightedAttention.apply(num_queries, bias, gate, lengths, *parts)  # type: ignore[no-untyped-call]


class WeightedAttention(torch.autograd.Function):
    """Number of queries, log u and r (1 or B, L, S) or None, lengths, parts as in packing.py -> (B, L, H, E)."""

    @staticmethod
    def forward(
        ctx: Any, num_queries: int, bias: Tensor | None, gate: Tensor | None,
        lengths: tuple[Tensor | None, Tensor | None], *parts: Tensor,
    ) -> Tensor:  # fmt: skip
        """(softmax(q k^T / sqrt(E) + bias) * gate) v."""
        views = split(parts, num_queries)
        batch, _, heads, width = views[0].shape
        q, k, v = (_matrices(x, length) for x, length in zip(views, (lengths[0], lengths[1], lengths[1]), strict=True))
        empty = None if bias is None else _attend_to_nothing(bias)
        added = None if bias is None else bias.to(q.dtype, copy=True)
        if added is not None and empty is not None:  # the softmax of nothing but -inf is no number
            added.masked_fill_(rearrange(empty, "b l -> b l 1"), 0)
        weights, out = q.new_empty(*q.shape[:2], k.shape[1]), torch.empty_like(q)
        for images in _groups(weights, batch):
            rows = slice(images.start * heads, images.stop * heads)
            p = weights[rows].baddbmm_(q[rows], k[rows].mT, beta=0, alpha=width**-0.5)
            if added is not None:
                _by_head(p, heads).add_(_of(added, images))
            torch.ops.aten._softmax.out(p, -1, False, out=p)
            torch.bmm(p if gate is None else _gated(p, gate, images, heads), v[rows], out=out[rows])
        ctx.save_for_backward(weights, q, k, v, bias if ctx.needs_input_grad[1] else None, gate, empty)
        ctx.num_queries, ctx.heads, ctx.shapes = num_queries, heads, [part.shape for part in parts]
        out = rearrange(out, "(b h) l e -> b l h e", h=heads)
        return (out if empty is None else out * rearrange(~empty, "b l -> b l 1 1").to(out.dtype)).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With P the softmax and G = grad v^T: dv = (r P)^T grad, dr = P G, dS = P (r G - rowsum(P r G)) = d log u,
        dq = dS k, dk = dS^T q."""
        weights, q, k, v, bias, gate, empty = ctx.saved_tensors
        heads, scale = ctx.heads, q.shape[-1] ** -0.5
        do = _matrices(grad, None)
        if empty is not None:
            _by_head(do, heads).mul_(rearrange(~empty, "b l -> b 1 l 1").to(do.dtype))
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dbias = None if bias is None else torch.zeros_like(bias)
        dgate = torch.zeros_like(gate) if ctx.needs_input_grad[2] else None
        for images in _groups(weights, len(grad)):
            rows = slice(images.start * heads, images.stop * heads)
            p, ds = weights[rows], torch.bmm(do[rows], v[rows].mT)
            torch.bmm((p if gate is None else _gated(p, gate, images, heads)).mT, do[rows], out=dv[rows])
            if gate is not None:
                _accumulate(dgate, images, p, ds, heads)
                _by_head(ds, heads).mul_(_of(gate, images).to(ds.dtype))
            torch.ops.aten._softmax_backward_data.out(ds, p, -1, p.dtype, grad_input=ds)
            _accumulate(dbias, images, ds, None, heads)
            dq[rows].baddbmm_(ds, k[rows], beta=0, alpha=scale)
            dk[rows].baddbmm_(ds.mT, q[rows], beta=0, alpha=scale)
        grads, views = gradients([q.new_empty(shape) for shape in ctx.shapes], ctx.num_queries)
        for view, matrices in zip(views, (dq, dk, dv), strict=True):
            view.copy_(rearrange(matrices, "(b h) l e -> b l h e", h=heads))
        return None, dbias, dgate, None, *grads


def _matrices(x: Tensor, lengths: Tensor | None) -> Tensor:
    """A copy of x (B, L, H, E) as a matrix for each head (B * H, L, E), with zeros from each image's length on."""
    copied = rearrange(x, "b l h e -> b h l e").clone(memory_format=torch.contiguous_format)
    if lengths is not None:
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # four times as fast as masked_fill_
            rows = repeat(padding, "b l -> (b h l)", h=x.shape[2]).nonzero()[:, 0]
            rearrange(copied, "b h l e -> (b h l) e").index_fill_(0, rows, 0)
        else:
            copied.masked_fill_(rearrange(padding, "b l -> b 1 l 1"), 0)
    return rearrange(copied, "b h l e -> (b h) l e")


def _attend_to_nothing(bias: Tensor) -> Tensor | None:
    """Which queries (1 or B, L) have a bias of -inf for every key; None where none is known to."""
    empty = bias.amax(dim=-1).isneginf()
    if bias.device.type == "cpu" and not torch.compiler.is_compiling() and not empty.any():
        return None
    return empty


def _groups(weights: Tensor, batch: int) -> list[slice]:
    """Slices of the images whose weights (B * H, L, S) make about _GROUP_BYTES; on a GPU all of them."""
    if weights.device.type != "cpu" or not weights.numel():
        return [slice(0, batch)]
    size = max(1, _GROUP_BYTES * batch // (weights.numel() * weights.element_size()))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """A view of x (b * H, L, S) as (b, H, L, S)."""
    return rearrange(x, "(b h) l s -> b h l s", h=heads)


def _of(x: Tensor, images: slice) -> Tensor:
    """These images of x (1 or B, L, S), for all heads: (1 or b, 1, L, S)."""
    return rearrange(x if len(x) == 1 else x[images], "b l s -> b 1 l s")


def _gated(p: Tensor, gate: Tensor, images: slice, heads: int) -> Tensor:
    """p (b * H, L, S) times the gate of these images."""
    return rearrange(_by_head(p, heads) * _of(gate, images).to(p.dtype), "b h l s -> (b h) l s")


def _accumulate(total: Tensor | None, images: slice, one: Tensor, other: Tensor | None, heads: int) -> None:
    """Adds one * other (b * H, L, S), summed over heads, to these images of total; over images too where it has one."""
    if total is None:
        return
    summed = _by_head(one if other is None else one * other, heads).sum(dim=1, dtype=total.dtype)
    if len(total) == 1:
        total += summed.sum(dim=0, keepdim=True)
    else:
        total[images] += summed
