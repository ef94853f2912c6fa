"""What surrounds the kernels: one dictionary of their arguments, grids, and the last sums of small gradients.

A call of an attention with this layer's shapes differs from the one before it in its tensors alone. So all else, from
the blocks to the compiled kernel, is found once and kept: in Python, finding it anew took longer than the kernels of
iLLaMA-B at batch 128 do on an H200."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
_ALIGNED = 16  # bytes: compiled kernels take it that every tensor begins at a multiple, where the first ones did


class Needs(NamedTuple):
    """Which small gradients backward must return."""

    alpha: bool = False
    tables: bool = False
    key_bias: bool = False


class Ready(NamedTuple):
    """A compiled kernel with its grid and every argument but the tensors."""

    run: Callable[..., None]
    values: tuple[Any, ...]
    tensors: tuple[tuple[int, str], ...]  # place among the values, and name


@dataclass(frozen=True)
class Fixed:
    """What calls of the same form share: the kernels' numbers by name, and kernels that have run."""

    numbers: dict[str, Any]
    ready: dict[str, Ready] = field(default_factory=dict)


_FIXED: dict[tuple[Any, ...], Fixed] = {}


def interpreting() -> bool:
    """Whether TRITON_INTERPRET was set when the kernels were read: they then run on a CPU, slowly."""
    return not isinstance(forward_kernel, triton.runtime.JITFunction)


def forward(parts: Sequence[Tensor], num_queries: int, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """Output (B, L, H, E) and L (B, H, L) float32."""
    tensors, fixed = forward_call(parts, num_queries, weighting)
    _launch("forward", tensors, fixed)
    return tensors["out"], tensors["lse"]


def backward(
    grad: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Tensor], num_queries: int, weighting: Weighting,
    needs: Needs,
) -> list[Tensor]:  # fmt: skip
    """Gradients of parts, then of alpha, before, after and the key bias, float32; empty where not needed."""
    grads, tensors, fixed = backward_call(grad, out, lse, parts, num_queries, weighting, needs)
    for name in backward_kernels(num_queries, fixed.numbers["num_keys"]):
        _launch(name, tensors, fixed)
    if not any(needs):
        return [*grads, *(lse.new_empty(0) for _ in range(4))]  # each its own: no output of an operator is another
    tables = ((weighting.before, tensors.get("dbefore")), (weighting.after, tensors.get("dafter")))
    small = [
        tensors["dalpha"].sum() if needs.alpha else lse.new_empty(0),
        *(_table_gradient(rows, table, weighting, log=table is weighting.before)
          if table is not None and rows is not None else lse.new_empty(0) for table, rows in tables),
        tensors["dbias"].sum(dim=(0, 1)) if needs.key_bias else lse.new_empty(0),
    ]  # fmt: skip
    return [*grads, *small]


def backward_kernels(num_queries: int, num_keys: int) -> tuple[str, ...]:
    """Names of the kernels backward is made of, in order."""
    return ("small",) if max(num_queries, num_keys) <= blocks.SMALL else ("query", "key")


def forward_call(
    parts: Sequence[Tensor], num_queries: int, weighting: Weighting
) -> tuple[dict[str, Tensor], Fixed]:
    """The tensors that the forward kernel takes, by name, absent ones left out; out and lse are new. And the rest."""
    tensors = _given(parts, num_queries, weighting)
    q, k = tensors["q"], tensors["k"]
    fixed = _fixed(tensors, (q.shape, q.stride(), k.shape, k.stride()), weighting)
    tensors["out"] = q.new_empty(q.shape)
    tensors["lse"] = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    return tensors, fixed


def backward_call(
    grad: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Tensor], num_queries: int, weighting: Weighting,
    needs: Needs,
) -> tuple[list[Tensor], dict[str, Tensor], Fixed]:  # fmt: skip
    """New gradients like parts; the tensors that the backward kernels take, by name, among them those gradients' views
    and the partial sums; and the rest."""
    tensors = _given(parts, num_queries, weighting)
    grads, (dq, dk, dv) = gradients(parts, num_queries)
    q, k = tensors["q"], tensors["k"]
    form = (q.shape, q.stride(), k.shape, k.stride(), dq.stride(), dk.stride(), needs)
    fixed = _fixed(tensors, form, weighting, dq, dk, needs)
    lse = lse.contiguous()  # whoever compiles what is around the kernels may have kept these in an order of its own
    tensors |= {"out": out.contiguous(), "lse": lse, "grad": grad.contiguous(), "delta": torch.empty_like(lse),
                "dq": dq, "dk": dk, "dv": dv}  # fmt: skip
    batch, length, heads, _ = q.shape
    if needs.alpha:  # one for each block of queries, whatever their size
        tensors["dalpha"] = lse.new_zeros(batch * heads * triton.cdiv(length, 16))
    if needs.tables:
        table = (batch, heads, length, fixed.numbers["NUM_CLASSES"])
        tensors["dbefore"], tensors["dafter"] = lse.new_empty(table), lse.new_empty(table)
    if needs.key_bias:
        tensors["dbias"] = lse.new_empty(batch, heads, k.shape[1])
    return grads, tensors, fixed


def block_of(name: str, numbers: dict[str, Any], arch: str) -> blocks.Block:
    """The table's block of kernel `name` for a call with these numbers."""
    return blocks.pick(
        name, arch, numbers["NUM_CLASSES"] > 0, numbers["E"], numbers["num_queries"], numbers["num_keys"]
    )


def sized(
    name: str, tensors: dict[str, Tensor], numbers: dict[str, Any], block: blocks.Block
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The arguments of kernel `name` in its own order, with the block's sizes and None for absent tensors; and its
    grid."""
    length, num_keys = numbers["num_queries"], numbers["num_keys"]
    walked, step = (length, block.queries) if name == "key" else (num_keys, block.keys)
    masked, tail = blocks.tail(walked, step)
    if numbers["LENGTHS"] or numbers["CAUSAL"]:
        masked, tail = True, 0
    sizes = {"BLOCK_E": blocks.columns(numbers["E"]), "BLOCK_L": block.queries, "BLOCK_S": block.keys,
             "MASKED": masked, "TAIL": tail}  # fmt: skip
    everything = {**numbers, **tensors, **sizes}
    heads = tensors["q"].shape[0] * numbers["num_heads"]
    programs = triton.cdiv(num_keys, block.keys) if name == "key" else triton.cdiv(length, block.queries)
    grid = (heads, 1, 1) if name == "small" else (programs, heads, 1)
    return {argument: everything.get(argument) for argument in KERNELS[name].arg_names}, grid


def _launch(name: str, tensors: dict[str, Tensor], fixed: Fixed) -> None:
    """Runs a kernel: through Triton the first time and where a tensor begins at an odd place, else straight away."""
    ready = fixed.ready.get(name)
    if ready is not None:
        values, together = list(ready.values), 0
        for place, tensor in ready.tensors:
            values[place] = tensors[tensor]
            together |= tensors[tensor].data_ptr()
        if together % _ALIGNED == 0:
            ready.run(*values)
            return
    block = block_of(name, fixed.numbers, _arch())
    own, grid = sized(name, tensors, fixed.numbers, block)
    compiled = KERNELS[name][grid](**own, num_warps=block.warps, num_stages=block.stages)
    if compiled is not None and all(x.data_ptr() % _ALIGNED == 0 for x in own.values() if isinstance(x, Tensor)):
        fixed.ready[name] = Ready(
            compiled[grid], tuple(None if isinstance(value, Tensor) else value for value in own.values()),
            tuple((place, key) for place, (key, value) in enumerate(own.items()) if isinstance(value, Tensor)),
        )  # fmt: skip


def _given(parts: Sequence[Tensor], num_queries: int, weighting: Weighting) -> dict[str, Tensor]:
    """q, k and v with their columns side by side, and the weighting's tensors in the types the kernels read."""
    q, k, v = split(parts, num_queries)
    if q.stride(3) != 1:
        q = q.contiguous()
    if k.stride(3) != 1 or k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    tensors = {"q": q, "k": k, "v": v}
    for name, dtype in _TYPES.items():
        given = getattr(weighting, name)
        if given is not None:
            tensors[name] = given.to(dtype).contiguous()
    if ("query_lengths" in tensors) != ("key_lengths" in tensors):
        missing, end = ("key_lengths", k.shape[1]) if "query_lengths" in tensors else ("query_lengths", q.shape[1])
        tensors[missing] = q.new_full((q.shape[0],), end, dtype=torch.int32)
    return tensors


_TYPES = {"alpha": torch.float32, "before": torch.float32, "after": torch.float32, "key_bias": torch.float32,
          "query_classes": torch.int8, "key_classes": torch.int8, "query_lengths": torch.int32,
          "key_lengths": torch.int32}  # fmt: skip


def _fixed(
    tensors: dict[str, Tensor], form: tuple[Any, ...], weighting: Weighting, dq: Tensor | None = None,
    dk: Tensor | None = None, needs: Needs | None = None,
) -> Fixed:  # fmt: skip
    """What calls with these tensors given share. form: shapes, strides, and which gradients are asked for."""
    q, w = tensors["q"], weighting
    table = w.before if w.before is not None else w.after
    classes = None if table is None else len(table)
    key = (*tensors, form, q.dtype, q.device, w.offset, w.causal, w.see_self, classes)
    found = _FIXED.get(key)
    if found is None:
        k = tensors["k"]
        numbers = {**_strides("q", q), **_strides("k", k), "num_heads": q.shape[2], "num_queries": q.shape[1],
                   "num_keys": k.shape[1], "offset": w.offset, "scale": q.shape[3] ** -0.5,
                   **_flags(w, q)}  # fmt: skip
        if dq is not None and dk is not None and needs is not None:
            numbers |= {**_strides("dq", dq), **_strides("dk", dk),
                        "BLOCK_C": 1 << max(0, numbers["NUM_CLASSES"] - 1).bit_length(), "ALPHA_GRAD": needs.alpha,
                        "TABLE_GRAD": needs.tables, "BIAS_GRAD": needs.key_bias}  # fmt: skip
        found = _FIXED[key] = Fixed(numbers)
    return found


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


def _table_gradient(rows: Tensor, table: Tensor, weighting: Weighting, *, log: bool) -> Tensor:
    """Sums of rows (B, H, L, C) by the class of the query: (C, C); where they are of the table's logarithm, divided by
    the table, and zero where it excludes."""
    assert weighting.query_classes is not None
    classes = torch.arange(len(table), device=rows.device)
    of_class = (weighting.query_classes[..., None] == classes).to(rows.dtype)
    sums = torch.einsum("blc,bld->cd", of_class, rows.sum(dim=1))
    return torch.where(table > 0, sums / table, 0).to(rows.dtype) if log else sums
