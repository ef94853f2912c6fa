"""Attention of packed projections by batched matrix products, with its backward written out.

Against the same products under autograd it makes one copy of the projection instead of three, no stack of the three
gradients, and works in place on the weights: 22 instead of 38 ms forward and backward in bf16 on one Zen 4 core at 8
images of 197 tokens, 16 heads of 32; torch's fused attention for CPUs takes 61."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

_GROUP_BYTES = 1 << 22  # attention weights worked on at a time: what stays in a core's cache


class PackedAttention(torch.autograd.Function):
    """qkv (B, L, 3, H, E), number of queries -> (B, num_queries, H, E); the last num_queries rows attend to all."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_queries: int) -> Tensor:
        """softmax(q k^T / sqrt(E)) v."""
        parts = rearrange(qkv, "b l three h e -> three (b h) l e").contiguous()
        out, weights = _attend(parts[0, :, -num_queries:], parts[1], parts[2])
        ctx.save_for_backward(parts, weights)
        ctx.heads = qkv.shape[3]
        return rearrange(out, "(b h) l e -> b l h e", h=ctx.heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of qkv, zero for queries that did not ask."""
        parts, weights = ctx.saved_tensors
        num_queries = weights.shape[1]
        grads = torch.empty_like(parts)
        grads[0, :, : parts.shape[2] - num_queries] = 0
        asking, grads_asking = (x[0, :, -num_queries:] for x in (parts, grads))
        _attend_backward(grad, weights, (asking, *parts[1:]), (grads_asking, *grads[1:]))
        return rearrange(grads, "three (b h) l e -> b l three h e", h=ctx.heads).contiguous(), None


class CrossAttention(torch.autograd.Function):
    """q (B, L, H, E) attends to packed keys and values kv (B, S, 2, H, E): (B, L, H, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(E)) v."""
        queries = rearrange(q, "b l h e -> (b h) l e").contiguous()
        parts = rearrange(kv, "b s two h e -> two (b h) s e").contiguous()
        out, weights = _attend(queries, parts[0], parts[1])
        ctx.save_for_backward(queries, parts, weights)
        ctx.heads = q.shape[2]
        return rearrange(out, "(b h) l e -> b l h e", h=ctx.heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of q and kv."""
        queries, parts, weights = ctx.saved_tensors
        dq, grads = torch.empty_like(queries), torch.empty_like(parts)
        _attend_backward(grad, weights, (queries, *parts), (dq, *grads))
        dkv = rearrange(grads, "two (b h) s e -> b s two h e", h=ctx.heads).contiguous()
        return rearrange(dq, "(b h) l e -> b l h e", h=ctx.heads).contiguous(), dkv


def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q (B * H, L, E), k and v (B * H, S, E): the output like q, and the attention weights (B * H, L, S)."""
    scale = q.shape[-1] ** -0.5
    weights = torch.empty(*q.shape[:2], k.shape[1], dtype=q.dtype, device=q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for group in _groups(weights):
        w = weights[group].baddbmm_(q[group], k[group].mT, beta=0, alpha=scale)
        torch.ops.aten._softmax.out(w, -1, False, out=w)
        torch.bmm(w, v[group], out=out[group])
    return out, weights


def _attend_backward(
    grad: Tensor, weights: Tensor, parts: tuple[Tensor, Tensor, Tensor], grads: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Writes the gradients of parts (q, k, v) into grads. With P the weights and G = grad v^T: dv = P^T grad,
    dS = P * (G - rowsum(P * G)), dq = dS k, dk = dS^T q."""
    (q, k, v), (dq, dk, dv), scale = parts, grads, parts[0].shape[-1] ** -0.5
    grad = rearrange(grad, "b l h e -> (b h) l e").contiguous()
    for group in _groups(weights):
        w = weights[group]
        torch.bmm(w.mT, grad[group], out=dv[group])
        ds = torch.bmm(grad[group], v[group].mT)
        torch.ops.aten._softmax_backward_data.out(ds, w, -1, w.dtype, grad_input=ds)
        dq[group].baddbmm_(ds, k[group], beta=0, alpha=scale)
        dk[group].baddbmm_(ds.mT, q[group], beta=0, alpha=scale)


def _groups(weights: Tensor) -> list[slice]:
    """Slices of the first axis of weights (B * H, L, S), each of about _GROUP_BYTES."""
    size = max(1, _GROUP_BYTES // (weights[0].numel() * weights.element_size()))
    return [slice(start, start + size) for start in range(0, len(weights), size)]
