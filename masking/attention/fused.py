"""The Triton kernels as a function of autograd's, and as one operator of torch, `lacuna::fused_attention`, for whoever
traces: opaque to torch.compile, with shapes and its own backward. Both run the same kernels. An operator written in
Python costs each forward and backward several tenths of a millisecond on the way, which eager calls need not pay.

Triton is imported when the kernels first run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from masking.attention.packing import split
from masking.attention.weighting import Weighting


def fused_attention(parts: list[Tensor], num_queries: int, weighting: Weighting) -> Tensor:
    """parts as in packing.py: (B, num_queries, H, E), with gradients to parts and to the weighting's tensors."""
    w = weighting
    if not (torch.compiler.is_compiling() or is_in_torch_dispatch_mode()):
        settings = (num_queries, w.offset, w.causal, w.see_self)
        ids = (w.query_classes, w.key_classes, w.query_lengths, w.key_lengths)
        out: Tensor = FusedAttention.apply(settings, ids, w.alpha, w.before, w.after, w.key_bias, *parts)  # type: ignore[no-untyped-call]
        return out
    return torch.ops.lacuna.fused_attention(
        parts, num_queries, w.alpha, w.before, w.after, w.key_bias, w.query_classes, w.key_classes, w.query_lengths,
        w.key_lengths, w.offset, w.causal, w.see_self,
    )[0]  # fmt: skip


class FusedAttention(torch.autograd.Function):
    """(Number of queries, offset, causal, see_self), (classes and lengths of queries and keys), alpha, before, after,
    key_bias, parts as in packing.py -> (B, L, H, E)."""

    @staticmethod
    def forward(
        ctx: Any, settings: tuple[int, int, bool, bool], ids: tuple[Tensor | None, ...], alpha: Tensor | None,
        before: Tensor | None, after: Tensor | None, key_bias: Tensor | None, *parts: Tensor,
    ) -> Tensor:  # fmt: skip
        """The output; kept are it, L, and what was given."""
        from masking.attention import triton_launch

        weighting = _weighting(settings, ids, (alpha, before, after, key_bias))
        out, lse = triton_launch.forward(parts, settings[0], weighting)
        ctx.save_for_backward(out, lse, alpha, before, after, key_bias, *ids, *parts)
        ctx.settings = settings
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the parts, and of the weighting's tensors that have one."""
        from masking.attention import triton_launch

        out, lse, *saved = ctx.saved_tensors
        learned, ids, parts = saved[:4], saved[4:8], saved[8:]
        asked = ctx.needs_input_grad[2:6]
        needs = triton_launch.Needs(asked[0], asked[1] or asked[2], asked[3])
        weighting = _weighting(ctx.settings, ids, learned)
        grads = triton_launch.backward(grad, out, lse, parts, ctx.settings[0], weighting, needs)
        small = [found.to(given.dtype) if wanted else None
                 for found, given, wanted in zip(grads[len(parts) :], learned, asked, strict=True)]  # fmt: skip
        return None, None, *small, *grads[: len(parts)]


def _weighting(
    settings: tuple[int, int, bool, bool], ids: Sequence[Tensor | None], learned: Sequence[Tensor | None]
) -> Weighting:
    _, offset, causal, see_self = settings
    (alpha, before, after, key_bias), (query_classes, key_classes, query_lengths, key_lengths) = learned, ids
    return Weighting(alpha, causal, offset, key_lengths, query_lengths, key_bias, query_classes, key_classes, before,
                     after, see_self)  # fmt: skip


@torch.library.custom_op("lacuna::fused_attention", mutates_args=())
def _forward(
    parts: Sequence[Tensor], num_queries: int, alpha: Tensor | None, before: Tensor | None, after: Tensor | None,
    key_bias: Tensor | None, query_classes: Tensor | None, key_classes: Tensor | None, query_lengths: Tensor | None,
    key_lengths: Tensor | None, offset: int, causal: bool, see_self: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output, and L (B, H, num_queries) float32 in units of log 2."""
    from masking.attention import triton_launch

    settings, ids = (num_queries, offset, causal, see_self), (query_classes, key_classes, query_lengths, key_lengths)
    weighting = _weighting(settings, ids, (alpha, before, after, key_bias))
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

    settings, ids = (num_queries, offset, causal, see_self), (query_classes, key_classes, query_lengths, key_lengths)
    weighting = _weighting(settings, ids, (alpha, before, after, key_bias))
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
