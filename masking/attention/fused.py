"""The Triton kernels as one operator of torch, `lacuna::fused_attention`: opaque to torch.compile, with shapes for
tracing and its own backward. Triton is imported when the kernels first run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from masking.attention.packing import split
from masking.attention.weighting import Weighting


def fused_attention(parts: list[Tensor], num_queries: int, weighting: Weighting) -> Tensor:
    """parts as in packing.py: (B, num_queries, H, E), with gradients to parts and to the weighting's tensors."""
    w = weighting
    return torch.ops.lacuna.fused_attention(
        parts, num_queries, w.alpha, w.before, w.after, w.key_bias, w.query_classes, w.key_classes, w.query_lengths,
        w.key_lengths, w.offset, w.causal, w.see_self,
    )[0]  # fmt: skip


@torch.library.custom_op("lacuna::fused_attention", mutates_args=())
def _forward(
    parts: Sequence[Tensor], num_queries: int, alpha: Tensor | None, before: Tensor | None, after: Tensor | None,
    key_bias: Tensor | None, query_classes: Tensor | None, key_classes: Tensor | None, query_lengths: Tensor | None,
    key_lengths: Tensor | None, offset: int, causal: bool, see_self: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output, and L (B, H, num_queries) float32 in units of log 2."""
    from masking.attention import triton_launch

    weighting = Weighting(alpha, causal, offset, key_lengths, query_lengths, key_bias, query_classes, key_classes,
    before,
                          after, see_self)  # fmt: skip
    return triton_launch.forward(parts, num_queries, weighting)


@_forward.register_fake
def _(parts: Sequence[Tensor], num_queries: int, *_: object) -> tuple[Tensor, Tensor]:
    q = split(parts, num_queries)[0]
    return q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2], num_queries, dtype=torch.float32)


@torch.library.custom_op("lacuna::fused_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Tensor], num_queries: int, alpha: Tensor | None,
    before: Tensor | None, after: Tensor | None, key_bias: Tensor | None, query_classes: Tensor | None,
    key_classes: Tensor | None, query_lengths: Tensor | None, key_lengths: Tensor | None, offset: int, causal: bool,
    see_self: bool, needs_alpha: bool, needs_tables: bool, needs_bias: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of parts, then of alpha, before, after and key_bias: empty where not needed."""
    from masking.attention import triton_launch

    weighting = Weighting(alpha, causal, offset, key_lengths, query_lengths, key_bias, query_classes, key_classes,
    before,
                          after, see_self)  # fmt: skip
    needs = triton_launch.Needs(needs_alpha, needs_tables, needs_bias)
    return triton_launch.backward(grad, out, lse, parts, num_queries, weighting, needs)


@_backward.register_fake
def _(
    grad: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Tensor], num_queries: int, alpha: Tensor | None,
    before: Tensor | None, after: Tensor | None, key_bias: Tensor | None, *rest: Any,
) -> list[Tensor]:  # fmt: skip
    needs_alpha, needs_tables, needs_bias = rest[-3:]
    wanted = ((alpha, needs_alpha), (before, needs_tables), (after, needs_tables), (key_bias, needs_bias))
    small = [tensor.new_empty(tensor.shape, dtype=torch.float32) if tensor is not None and needed else grad.new_empty(0)
             for tensor, needed in wanted]  # fmt: skip
    return [*(part.new_empty(part.shape) for part in parts), *small]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    parts, num_queries, *rest = inputs
    ctx.num_parts, ctx.num_queries, ctx.flags = len(parts), num_queries, rest[8:]
    ctx.save_for_backward(*output, *rest[:8], *parts)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    out, lse, alpha, before, after, key_bias, *rest = ctx.saved_tensors
    ids, parts = rest[:4], rest[4:]
    needs = ctx.needs_input_grad
    flags = (needs[2], needs[3] or needs[4], needs[5])
    grads = torch.ops.lacuna.fused_attention_backward(
        grad, out, lse, parts, ctx.num_queries, alpha, before, after, key_bias, *ids, *ctx.flags, *flags
    )
    tensors = zip(grads[len(parts) :], (alpha, before, after, key_bias), needs[2:6], strict=True)
    small = [found.to(tensor.dtype) if needed else None for found, tensor, needed in tensors]
    return (grads[: len(parts)], None, *small, *[None] * 7)


_forward.register_autograd(_gradients, setup_context=_setup)
