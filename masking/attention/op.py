"""Attention, and the choice of what computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from masking.attention import blocks
from masking.attention.fused import fused_attention
from masking.attention.matmul import CrossAttention, PackedAttention
from masking.attention.packing import split
from masking.attention.reference import cleared, weighted_attention_reference
from masking.attention.weighted import weighted_attention
from masking.attention.weighting import PLAIN, Weighting, dense


class Branch(NamedTuple):
    """What will compute an attention, and why."""

    name: str
    reason: str


class Shape(NamedTuple):
    """What of an attention's size the choice may look at."""

    head_dim: int
    num_queries: int
    num_keys: int


Spans = tuple[tuple[int, int, str], ...]
BRANCHES = ("sdpa", "matmul", "triton")
_HAS_TRITON = find_spec("triton") is not None
_FEW_KEYS = 128  # of 50, 65, 197 and 257 measured, the first two and the last two fall on either side
_USUAL = Shape(64, 197, 197)
_forced: list[str] = []
_known = cache(blocks.measured)


def attention(q: Tensor, k: Tensor, v: Tensor, weighting: Weighting = PLAIN) -> Tensor:
    """softmax(q k^T / sqrt(E)) v under a weighting. q is (B, H, L, E), k and v are (B, H, S, E), one float dtype;
    (B, H, L, E)."""
    branch = _choose(q, q.shape[0], Shape(q.shape[3], q.shape[2], k.shape[2]), weighting)
    if weighting.is_plain() and branch != "triton":
        return _BRANCHES[branch](q, k, v)
    parts = [rearrange(x, "b h l e -> b l h e") for x in (q, k, v)]
    return rearrange(_weighted(branch, parts, q.shape[2], weighting), "b l h e -> b h l e")


def self_attention(qkv: Tensor, num_queries: int | None = None, weighting: Weighting = PLAIN) -> Tensor:
    """Attention of a projection qkv (B, L, 3, H, E) to itself: (B, L, H, E), or (B, num_queries, H, E) where only the
    last so many rows ask; the weighting's offset is then theirs to set."""
    batch, length, _, _, width = qkv.shape
    num_queries = length if num_queries is None else num_queries
    branch = _choose(qkv, batch, Shape(width, num_queries, length), weighting)
    if not weighting.is_plain() or branch == "triton":
        return _weighted(branch, [qkv], num_queries, weighting)
    if branch == "matmul":
        return PackedAttention.apply(qkv, num_queries)  # type: ignore[no-untyped-call]
    # Unbinding the axis that the projection wrote lets backward stack the three gradients without a second copy.
    q, k, v = (rearrange(part, "b l h e -> b h l e") for part in qkv.unbind(2))
    if num_queries < q.shape[2]:
        q = q[:, :, -num_queries:]
    return rearrange(_BRANCHES[branch](q, k, v), "b h l e -> b l h e")


def cross_attention(q: Tensor, kv: Tensor, weighting: Weighting = PLAIN) -> Tensor:
    """Attention of queries q (B, L, H, E) to packed keys and values kv (B, S, 2, H, E), one float dtype: (B, L, H,
    E)."""
    branch = _choose(q, q.shape[0], Shape(q.shape[3], q.shape[1], kv.shape[1]), weighting)
    if not weighting.is_plain() or branch == "triton":
        return _weighted(branch, [q, kv], q.shape[1], weighting)
    if branch == "matmul":
        return CrossAttention.apply(q, kv)  # type: ignore[no-untyped-call]
    k, v = (rearrange(part, "b s h e -> b h s e") for part in kv.unbind(2))
    return rearrange(_BRANCHES[branch](rearrange(q, "b l h e -> b h l e"), k, v), "b h l e -> b l h e")


def choose(
    device_type: str, dtype: torch.dtype, weighting: Weighting = PLAIN, shape: Shape = _USUAL
) -> Branch:
    """The branch taken for tensors of this device, dtype, weighting and shape. Raises ValueError where a forced branch
    cannot compute it."""
    if _forced:
        if _forced[-1] == "sdpa" and weighting.is_gated():
            raise ValueError(
                f"branch 'sdpa' cannot compute {weighting.describe()}: it has nothing to multiply after the softmax; "
                "force matmul or triton"
            )
        return Branch(_forced[-1], "asked for by `forced`")
    return _choose_cuda(dtype, weighting, shape) if device_type == "cuda" else _choose_cpu(dtype, weighting, shape)


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Makes every attention inside take one branch, "sdpa", "matmul" or "triton": for comparisons."""
    if name not in BRANCHES:
        raise ValueError(f"no attention branch {name!r}; there are {', '.join(BRANCHES)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def _choose(like: Tensor, batch: int, shape: Shape, weighting: Weighting) -> str:
    """The branch for so many images like this tensor, after a look at whether the weighting fits them."""
    if weighting is not PLAIN:
        weighting.check(batch, shape.num_queries, shape.num_keys)
    return choose(like.device.type, like.dtype, weighting, shape).name


def _choose_cpu(dtype: torch.dtype, weighting: Weighting, shape: Shape) -> Branch:
    if weighting.is_gated():
        return Branch("matmul", "torch's fused attention has nothing to multiply after the softmax")
    if weighting.learns_bias():
        return Branch("matmul", "torch's fused attention for CPUs has no gradient for a bias")
    if dtype == torch.bfloat16 and not _has_avx512():
        return Branch("sdpa", "without AVX-512 batched products of bf16 are slower still than torch's fused attention")
    padded = weighting.key_lengths is not None or weighting.query_lengths is not None
    if padded and shape.num_keys < _FEW_KEYS:
        return Branch("matmul", "with few keys, clearing the padding costs torch's fused attention more than it gains")
    if dtype == torch.bfloat16:
        return Branch("matmul", "backward of torch's fused attention for CPUs is 3 to 7 times slower in bf16")
    return Branch("sdpa", "torch's fused attention does not materialise the weights")


def _choose_cuda(dtype: torch.dtype, weighting: Weighting, shape: Shape) -> Branch:
    """The fastest branch that computes this weighting, where a GPU like this one was measured; else by rule."""
    lacks = _triton_lacks(dtype, shape.head_dim)
    alone = weighting.is_gated() or weighting.learns_bias()  # nothing fused in torch computes these
    able = ["matmul", *([] if alone else ["sdpa"]), *(["triton"] if lacks is None else [])]
    name = _fastest_measured(weighting.describe(), tuple(able), shape)
    if name is not None:
        reason = "" if torch.compiler.is_compiling() else _measurement(weighting.describe(), tuple(able), shape)
        return Branch(name, f"{reason} (Triton's kernels: {lacks})" if lacks else reason)
    if lacks is None and (alone or weighting.before is not None):
        return Branch("triton", "no fused attention of torch computes this without a matrix of L x S in memory")
    if alone:
        return Branch("matmul", f"no fused attention of torch computes this; Triton's kernels: {lacks}")
    return Branch("sdpa", f"torch's attention is fused; Triton's kernels: {lacks or 'not measured on this GPU'}")


def _triton_lacks(dtype: torch.dtype, head_dim: int) -> str | None:
    """What keeps the kernels from running here, None where nothing does."""
    if not _HAS_TRITON:
        return "Triton is not installed"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"they are for bfloat16 and float16, not {dtype}"
    if blocks.columns(head_dim) not in blocks.HEAD_DIMS:
        return f"they have no blocks for heads of {head_dim}"
    return "the GPU is older than the A100" if _is_old() else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_old() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)


def _fastest_measured(member: str, able: tuple[str, ...], shape: Shape) -> str | None:
    """The fastest of the branches that are able to, None where nobody measured: by comparisons of sizes alone, which
    torch's compiler follows where it does not know the sizes. It compiles again only for what another branch computes.
    """
    if shape.num_queries > 2 * shape.num_keys or shape.num_keys > 2 * shape.num_queries:
        return None
    for least, most, name in _spans(member, able, shape.head_dim):
        if least <= shape.num_queries <= most and least <= shape.num_keys <= most:
            return name
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spans(member: str, able: tuple[str, ...], head_dim: int) -> Spans:
    """Numbers of queries and keys, from and to, between which one branch is the fastest that was measured."""
    return _spans_on(*_gpu(), member, able, head_dim)


@cache
def _spans_on(gpu: str, capability: str, member: str, able: tuple[str, ...], head_dim: int) -> Spans:
    spans: list[tuple[int, int, str]] = []
    for size in range(1, blocks.largest_measured() + 1):
        known = _known(gpu, capability, member, head_dim, size, size)
        ms = {} if known is None else {branch: known.ms[branch] for branch in able if branch in known.ms}
        if not ms:
            continue
        best = min(ms, key=ms.__getitem__)
        if spans and spans[-1][1:] == (size - 1, best):
            spans[-1] = (spans[-1][0], size, best)
        else:
            spans.append((size, size, best))
    return tuple(spans)


def _measurement(member: str, able: tuple[str, ...], shape: Shape) -> str:
    """In words what was measured nearest to a shape that `_fastest_measured` knows."""
    middle = round(math.sqrt(shape.num_queries * shape.num_keys))
    known = _known(*_gpu(), member, shape.head_dim, shape.num_queries, shape.num_keys)
    known = known or _known(*_gpu(), member, shape.head_dim, middle, middle)
    assert known is not None
    ms = {branch: known.ms[branch] for branch in able if branch in known.ms}
    best = min(ms, key=ms.__getitem__)
    others = ", ".join(f"{branch} {ms[branch]:.2f}" for branch in ms if branch != best)
    return f"it was measured fastest, {ms[best]:.2f} ms against {others}: {known.source}"


@cache
def _gpu() -> tuple[str, str]:
    """Name and compute capability, as blocks.json has them."""
    if not torch.cuda.is_available():
        return "none", "none"
    return torch.cuda.get_device_name(), "{}.{}".format(*torch.cuda.get_device_capability())


def _weighted(branch: str, parts: list[Tensor], num_queries: int, weighting: Weighting) -> Tensor:
    """parts as in packing.py, attended to by one branch: (B, num_queries, H, E)."""
    if branch == "triton":
        return fused_attention(parts, num_queries, weighting)
    # A graph for others takes any batch and holds plain operations: neither groups of images nor a backward.
    if branch == "matmul" and not torch.compiler.is_exporting():
        return weighted_attention(parts, num_queries, weighting)
    q, k, v = (rearrange(part, "b l h e -> b h l e") for part in split(parts, num_queries))
    if torch.compiler.is_exporting():
        return rearrange(weighted_attention_reference(q, k, v, weighting), "b h l e -> b l h e")
    q, k, v = cleared(q, weighting.query_lengths), cleared(k, weighting.key_lengths), cleared(v, weighting.key_lengths)
    bias, _ = dense(weighting, num_queries, k.shape[2], q)
    assert bias is not None
    mask = rearrange(bias, "b l s -> b 1 l s").to(q.dtype)
    return rearrange(scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h l e -> b l h e")


def _matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads, scale = q.shape[1], q.shape[-1] ** -0.5
    q, k, v = (rearrange(x, "b h l e -> (b h) l e") for x in (q, k, v))
    nothing = q.new_empty(1, 1, 1)  # beta=0: never read; alpha scales inside the product
    weights = torch.baddbmm(nothing, q, k.mT, beta=0, alpha=scale).softmax(dim=-1)
    return rearrange(weights @ v, "(b h) l e -> b h l e", h=heads)


_BRANCHES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": scaled_dot_product_attention,
    "matmul": _matmul,
}
