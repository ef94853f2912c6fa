"""Attention under any weighting by batched matrix products, with its backward written out: the branch for CPUs, and
for a GPU without Triton. Only the softmax is kept for backward, not its product with the gate; images are worked on in
groups that stay in a core's cache."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from masking.attention.packing import gradients, split
from masking.attention.reference import cleared
from masking.attention.weighting import Weighting, dense

_GROUP_BYTES = 1 << 22  # attention weights worked on at a time: what stays in a core's cache


def weighted_attention(parts: list[Tensor], num_queries: int, weighting: Weighting) -> Tensor:
    """parts as in packing.py: (B, num_queries, H, E), with gradients to parts and to the weighting's tensors."""
    q, k, v = split(parts, num_queries)
    if weighting.key_lengths is not None or weighting.query_lengths is not None:
        lengths = (weighting.query_lengths, weighting.key_lengths, weighting.key_lengths)
        parts = [_cleared(x, length) for x, length in zip((q, k, v), lengths, strict=True)]
    bias, gate = dense(weighting, num_queries, k.shape[1], q)
    return WeightedAttention.apply(num_queries, bias, gate, *parts)  # type: ignore[no-untyped-call]


class WeightedAttention(torch.autograd.Function):
    """Number of queries, log u and r (1 or B, L, S) or None, parts as in packing.py -> (B, L, H, E)."""

    @staticmethod
    def forward(ctx: Any, num_queries: int, bias: Tensor | None, gate: Tensor | None, *parts: Tensor) -> Tensor:
        """(softmax(q k^T / sqrt(E) + bias) * gate) v."""
        q, k, v = split(parts, num_queries)
        batch, length, heads, width = q.shape
        weights = q.new_empty(batch * heads, length, k.shape[1])
        out = q.new_empty(batch, length, heads, width)
        for images in _groups(weights, batch):
            p = weights[_rows(images, heads)]
            p.baddbmm_(_matrices(q, images), _matrices(k, images).mT, beta=0, alpha=width**-0.5)
            by_head = rearrange(p, "(b h) l s -> b h l s", h=heads)
            if bias is not None:
                by_head.add_(_of(bias, images).to(q.dtype))
            torch.ops.aten._softmax.out(p, -1, False, out=p)
            if bias is not None:
                by_head.masked_fill_(_of(bias, images).amax(dim=-1, keepdim=True).isneginf(), 0)
            a = p if gate is None else rearrange(by_head * _of(gate, images).to(q.dtype), "b h l s -> (b h) l s")
            out[images] = rearrange(a @ _matrices(v, images), "(b h) l e -> b l h e", h=heads)
        ctx.save_for_backward(weights, bias, gate, *parts)
        ctx.num_queries = num_queries
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With P the softmax and G = grad v^T: dv = (r P)^T grad, dr = P G, dS = P (r G - rowsum(P r G)) = d log u,
        dq = dS k, dk = dS^T q."""
        weights, bias, gate, *parts = ctx.saved_tensors
        q, k, v = split(parts, ctx.num_queries)
        heads, scale = q.shape[2], q.shape[3] ** -0.5
        grads, (dq, dk, dv) = gradients(parts, ctx.num_queries)
        dbias = torch.zeros_like(bias) if ctx.needs_input_grad[1] else None
        dgate = torch.zeros_like(gate) if ctx.needs_input_grad[2] else None
        for images in _groups(weights, len(q)):
            p, do = weights[_rows(images, heads)], _matrices(grad, images)
            ds = do @ _matrices(v, images).mT
            a = p
            if gate is not None:
                r = _of(gate, images).to(p.dtype)
                a = rearrange(rearrange(p, "(b h) l s -> b h l s", h=heads) * r, "b h l s -> (b h) l s")
                _accumulate(dgate, images, p, ds, heads)
                rearrange(ds, "(b h) l s -> b h l s", h=heads).mul_(r)
            _put(dv, images, a.mT @ do)
            torch.ops.aten._softmax_backward_data.out(ds, p, -1, p.dtype, grad_input=ds)
            _accumulate(dbias, images, ds, None, heads)
            ds.mul_(scale)
            _put(dq, images, ds @ _matrices(k, images))
            _put(dk, images, ds.mT @ _matrices(q, images))
        return None, dbias, dgate, *grads


def _cleared(x: Tensor, lengths: Tensor | None) -> Tensor:
    return rearrange(cleared(rearrange(x, "b l h e -> b h l e"), lengths), "b h l e -> b l h e")


def _groups(weights: Tensor, batch: int) -> list[slice]:
    """Slices of the images whose weights (B * H, L, S) make about _GROUP_BYTES; on a GPU all of them."""
    if weights.device.type != "cpu" or not weights.numel():
        return [slice(0, batch)]
    size = max(1, _GROUP_BYTES * batch // (weights.numel() * weights.element_size()))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def _rows(images: slice, heads: int) -> slice:
    return slice(images.start * heads, images.stop * heads)


def _matrices(x: Tensor, images: slice) -> Tensor:
    """These images of x (B, L, H, E), a matrix for each head: (b * H, L, E)."""
    return rearrange(x[images], "b l h e -> (b h) l e").contiguous()


def _of(x: Tensor, images: slice) -> Tensor:
    """These images of x (1 or B, L, S), for all heads: (1 or b, 1, L, S)."""
    return rearrange(x if len(x) == 1 else x[images], "b l s -> b 1 l s")


def _put(target: Tensor, images: slice, matrices: Tensor) -> None:
    target[images] = rearrange(matrices, "(b h) l e -> b l h e", h=target.shape[2])


def _accumulate(total: Tensor | None, images: slice, one: Tensor, other: Tensor | None, heads: int) -> None:
    """Adds one * other (b * H, L, S), summed over heads, to these images of total; over images too where it has one."""
    if total is None:
        return
    product = one if other is None else one * other
    summed = rearrange(product, "(b h) l s -> b h l s", h=heads).sum(dim=1, dtype=total.dtype)
    if len(total) == 1:
        total += summed.sum(dim=0, keepdim=True)
    else:
        total[images] += summed
