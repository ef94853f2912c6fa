"""What surrounds the kernels: one dictionary of their arguments, grids, and the last sums of small gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from masking.attention import blocks
from masking.attention.packing import gradients, split
from masking.attention.triton_backward import key_kernel, query_kernel
from masking.attention.triton_forward import forward_kernel
from masking.attention.triton_small import small_kernel
from masking.attention.weighting import Weighting

KERNELS = {"forward": forward_kernel, "query": query_kernel, "key": key_kernel, "small": small_kernel}


class Needs(NamedTuple):
    """Which small gradients backward must return."""

    alpha: bool = False
    tables: bool = False
    key_bias: bool = False


def interpreting() -> bool:
    """Whether TRITON_INTERPRET was set when the kernels were read: they then run on a CPU, slowly."""
    return not isinstance(forward_kernel, triton.runtime.JITFunction)


def forward(parts: Sequence[Tensor], num_queries: int, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """Output (B, L, H, E) and L (B, H, L) float32."""
    arguments = forward_arguments(parts, num_queries, weighting)
    _launch("forward", arguments)
    return arguments["out"], arguments["lse"]


def backward(
    grad: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Tensor], num_queries: int, weighting: Weighting,
    needs: Needs,
) -> list[Tensor]:  # fmt: skip
    """Gradients of parts, then of alpha, before, after and the key bias, float32; empty where not needed."""
    grads, arguments = backward_arguments(grad, out, lse, parts, num_queries, weighting, needs)
    for name in backward_kernels(num_queries, arguments["num_keys"]):
        _launch(name, arguments)
    tables = ((weighting.before, arguments["dbefore"]), (weighting.after, arguments["dafter"]))
    small = [
        arguments["dalpha"].sum() if needs.alpha else lse.new_empty(0),
        *(_table_gradient(rows, table, weighting, log=table is weighting.before)
          if table is not None and needs.tables else lse.new_empty(0) for table, rows in tables),
        arguments["dbias"].sum(dim=(0, 1)) if needs.key_bias else lse.new_empty(0),
    ]  # fmt: skip
    return [*grads, *small]


def backward_kernels(num_queries: int, num_keys: int) -> tuple[str, ...]:
    """Names of the kernels backward is made of, in order."""
    return ("small",) if max(num_queries, num_keys) <= blocks.SMALL else ("query", "key")


def forward_arguments(parts: Sequence[Tensor], num_queries: int, weighting: Weighting) -> dict[str, Any]:
    """What the forward kernel takes, by name; out and lse are new."""
    q, k, v = (part if part.stride(3) == 1 else part.contiguous() for part in split(parts, num_queries))
    if k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    (batch, length, heads, width), num_keys = q.shape, k.shape[1]
    lengths = [weighting.query_lengths, weighting.key_lengths]
    if any(given is not None for given in lengths):
        ends = (length, num_keys)
        lengths = [q.new_full((batch,), end, dtype=torch.int32) if given is None else given.int().contiguous()
                   for given, end in zip(lengths, ends, strict=True)]  # fmt: skip
    names = ("alpha", "before", "after", "key_bias")
    floats = {name: _contiguous(getattr(weighting, name), torch.float32) for name in names}
    return {
        "q": q, "k": k, "v": v, "out": q.new_empty(q.shape),
        "lse": q.new_empty(batch, heads, length, dtype=torch.float32), **floats,
        "query_classes": _contiguous(weighting.query_classes, torch.int8),
        "key_classes": _contiguous(weighting.key_classes, torch.int8),
        "query_lengths": lengths[0], "key_lengths": lengths[1],
        **_strides("q", q), **_strides("k", k), "num_heads": heads, "num_queries": length, "num_keys": num_keys,
        "offset": weighting.offset, "scale": width**-0.5, **_flags(weighting, q),
    }  # fmt: skip


def backward_arguments(
    grad: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Tensor], num_queries: int, weighting: Weighting,
    needs: Needs,
) -> tuple[list[Tensor], dict[str, Any]]:  # fmt: skip
    """New gradients like parts, and what the backward kernels take, by name: those gradients' views and the partial
    sums."""
    shared = forward_arguments(parts, num_queries, weighting)
    del shared["out"], shared["lse"]
    grads, (dq, dk, dv) = gradients(parts, num_queries)
    batch, length, heads, _ = dq.shape
    classes, num_keys = shared["NUM_CLASSES"], shared["num_keys"]
    table = (batch, heads, length, classes)
    most = batch * heads * triton.cdiv(length, 16)  # one for each block of queries, whatever their size
    return grads, {
        **shared, "out": out, "lse": lse, "grad": grad.contiguous(), "delta": torch.empty_like(lse),
        "dq": dq, "dk": dk, "dv": dv,
        "dalpha": lse.new_zeros(most) if needs.alpha else None,
        "dbefore": lse.new_empty(table) if needs.tables else None,
        "dafter": lse.new_empty(table) if needs.tables else None,
        "dbias": lse.new_empty(batch, heads, num_keys) if needs.key_bias else None,
        **_strides("dq", dq), **_strides("dk", dk), "BLOCK_C": 1 << max(0, classes - 1).bit_length(),
        "ALPHA_GRAD": needs.alpha, "TABLE_GRAD": needs.tables, "BIAS_GRAD": needs.key_bias,
    }  # fmt: skip


def sized(name: str, arguments: dict[str, Any], arch: str) -> tuple[dict[str, Any], blocks.Block]:
    """The arguments of kernel `name` alone, with its block sizes; and its blocks."""
    width, length, num_keys = arguments["E"], arguments["num_queries"], arguments["num_keys"]
    block = blocks.pick(name, arch, arguments["NUM_CLASSES"] > 0, width, length, num_keys)
    walked, step = (length, block.queries) if name == "key" else (num_keys, block.keys)
    masked, tail = blocks.tail(walked, step)
    if arguments["LENGTHS"] or arguments["CAUSAL"]:
        masked, tail = True, 0
    sizes = {"BLOCK_E": blocks.columns(width), "BLOCK_L": block.queries, "BLOCK_S": block.keys, "MASKED": masked,
             "TAIL": tail}  # fmt: skip
    everything = {**arguments, **sizes}
    return {argument: everything[argument] for argument in KERNELS[name].arg_names}, block


def _launch(name: str, arguments: dict[str, Any]) -> None:
    own, block = sized(name, arguments, _arch())
    heads = arguments["q"].shape[0] * arguments["num_heads"]
    grid = {
        "forward": (triton.cdiv(arguments["num_queries"], block.queries), heads),
        "query": (triton.cdiv(arguments["num_queries"], block.queries), heads),
        "key": (triton.cdiv(arguments["num_keys"], block.keys), heads),
        "small": (heads,),
    }[name]
    KERNELS[name][grid](**own, num_warps=block.warps, num_stages=block.stages)


def _arch() -> str:
    return blocks.ARCHES[0] if interpreting() else blocks.arch_of(torch.cuda.get_device_capability())


def _flags(weighting: Weighting, q: Tensor) -> dict[str, Any]:
    """What the kernels are compiled for, beside sizes."""
    table = weighting.before if weighting.before is not None else weighting.after
    return {
        "E": q.shape[3], "NUM_CLASSES": 0 if table is None else len(table), "BEFORE": weighting.before is not None,
        "AFTER": weighting.after is not None, "SOFT": weighting.alpha is not None, "CAUSAL": weighting.causal,
        "BIAS": weighting.key_bias is not None, "SELF": weighting.see_self,
        "LENGTHS": weighting.query_lengths is not None or weighting.key_lengths is not None,
        "F32": interpreting() and q.dtype == torch.bfloat16,
    }  # fmt: skip


def _strides(name: str, x: Tensor) -> dict[str, int]:
    middle = "s" if name.endswith("k") else "l"
    return {f"stride_{name}{axis}": stride for axis, stride in zip(("b", middle, "h"), x.stride()[:3], strict=True)}


def _contiguous(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()


def _table_gradient(rows: Tensor, table: Tensor, weighting: Weighting, *, log: bool) -> Tensor:
    """Sums of rows (B, H, L, C) by the class of the query: (C, C); where they are of the table's logarithm, divided by
    the table, and zero where it excludes."""
    assert weighting.query_classes is not None
    classes = torch.arange(len(table), device=rows.device)
    of_class = (weighting.query_classes[..., None] == classes).to(rows.dtype)
    sums = torch.einsum("blc,bld->cd", of_class, rows.sum(dim=1))
    return torch.where(table > 0, sums / table, 0).to(rows.dtype) if log else sums
