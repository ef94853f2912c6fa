"""The forward kernel: one program for each block of queries of a head; nothing of size L x S is written.

The keys go by in blocks of 64 and, since a class token leaves most lengths a few above a multiple of 64, one narrow
block at the end. Kept for backward: the output and L_i = max + log2 of the sum, of the biased scores over all keys.
The soft mask and the gate change the numerator alone (iLLaMA, arXiv 2404.06773, eq. 2)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from masking.attention.triton_tile import LOG2E, NEVER, lengths_of, product, put_rows, rows_of, weigh


@triton.jit
def attend_block(
    total, peak, acc, q, k, v, start, place, query_class, key_classes, key_bias, before, after, alpha, query_length,
    key_length, stride_ks, scale, offset,
    E: tl.constexpr, BLOCK_E: tl.constexpr, WIDTH: tl.constexpr, NUM_CLASSES: tl.constexpr, BEFORE: tl.constexpr,
    AFTER: tl.constexpr, SOFT: tl.constexpr, CAUSAL: tl.constexpr, BIAS: tl.constexpr, SELF: tl.constexpr,
    LENGTHS: tl.constexpr, MASKED: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """One block of WIDTH keys from `start`: the running sum, maximum and numerator after it."""
    key = start + tl.arange(0, WIDTH)
    keys = rows_of(k, key, key_length, stride_ks, BLOCK_E, E, MASKED)
    scores = product(q, tl.trans(keys), tl.zeros((q.shape[0], WIDTH), tl.float32), F32) * (scale * LOG2E)
    key_class, bias = key, scores
    if NUM_CLASSES > 0:
        key_class = tl.load(key_classes + key, mask=key < key_length, other=0).to(tl.int32)
    if BIAS:
        bias = tl.load(key_bias + key, mask=key < key_length, other=0.0)[None, :] * LOG2E
    scores, gate, soft = weigh(
        scores, place[:, None], key[None, :], query_class[:, None], key_class[None, :], bias, before, after, alpha,
        query_length, key_length, NUM_CLASSES, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, offset, LENGTHS, MASKED,
    )  # fmt: skip
    higher = tl.maximum(peak, tl.max(scores, 1))
    finite = tl.where(higher == NEVER, 0.0, higher)
    shrink = tl.exp2(peak - finite)
    p = tl.exp2(scores - finite[:, None])
    total = total * shrink + tl.sum(p, 1)
    if AFTER:
        p = p * gate
    if SOFT:
        p = p * soft
    values = rows_of(v, key, key_length, stride_ks, BLOCK_E, E, MASKED)
    return total, higher, product(p.to(v.dtype.element_ty), values, acc * shrink[:, None], F32)


@triton.jit
def forward_kernel(  # long: its arguments are the tensors of the family
    q, k, v, out, lse, alpha, before, after, key_bias, query_classes, key_classes, query_lengths, key_lengths,
    stride_qb, stride_ql, stride_qh, stride_kb, stride_ks, stride_kh, num_heads, num_queries, num_keys, offset, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr, TAIL: tl.constexpr,
    MASKED: tl.constexpr, NUM_CLASSES: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, SOFT: tl.constexpr,
    CAUSAL: tl.constexpr, BIAS: tl.constexpr, SELF: tl.constexpr, LENGTHS: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """q (B, L, H, E), k and v (B, S, H, E) with these strides -> out (B, L, H, E) contiguous, lse (B, H, L) float32."""
    image, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    wide = image.to(tl.int64)
    query_length, key_length = lengths_of(query_lengths, key_lengths, image, num_queries, num_keys, LENGTHS)
    row = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    queries = rows_of(q + wide * stride_qb + head * stride_qh, row, query_length, stride_ql, BLOCK_E, E, True)
    k += wide * stride_kb + head * stride_kh
    v += wide * stride_kb + head * stride_kh
    place, query_class, weight = row + offset, row, 1.0
    if NUM_CLASSES > 0:
        query_class = tl.load(query_classes + wide * num_queries + row, mask=row < query_length, other=0).to(tl.int32)
        key_classes += wide * num_keys
    if SOFT:
        weight = tl.load(alpha)
    total, peak = tl.zeros((BLOCK_L,), tl.float32), tl.full((BLOCK_L,), NEVER, tl.float32)
    acc = tl.zeros((BLOCK_L, BLOCK_E), tl.float32)
    last = key_length
    if CAUSAL:
        last = tl.minimum(key_length, (tl.program_id(0) + 1) * BLOCK_L + offset)
    end = last if MASKED else num_keys // BLOCK_S * BLOCK_S
    for start in tl.range(0, end, BLOCK_S):
        total, peak, acc = attend_block(
            total, peak, acc, queries, k, v, start, place, query_class, key_classes, key_bias, before, after, weight,
            query_length, key_length, stride_ks, scale, offset, E, BLOCK_E, BLOCK_S, NUM_CLASSES, BEFORE, AFTER, SOFT,
            CAUSAL, BIAS, SELF, LENGTHS, MASKED, F32,
        )  # fmt: skip
    if TAIL > 0:
        total, peak, acc = attend_block(
            total, peak, acc, queries, k, v, end, place, query_class, key_classes, key_bias, before, after, weight,
            query_length, key_length, stride_ks, scale, offset, E, BLOCK_E, TAIL, NUM_CLASSES, BEFORE, AFTER, SOFT,
            CAUSAL, BIAS, SELF, LENGTHS, True, F32,
        )  # fmt: skip
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    kept = tl.where(total > 0, peak + tl.log2(tl.maximum(total, 1e-37)), float("inf"))
    tl.store(lse + tl.program_id(1).to(tl.int64) * num_queries + row, kept, mask=row < num_queries)
    out += (wide * num_queries * num_heads + head) * E
    put_rows(out, row, num_queries, num_heads * E, acc, BLOCK_E, E)
