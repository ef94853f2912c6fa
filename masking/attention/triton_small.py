"""Backward in one kernel for at most 64 queries and 64 keys, as in MAE's encoder: one program a head, five products
instead of seven, one launch instead of two; delta is never written. Formulas in triton_backward.py."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from masking.attention.triton_backward import sums_by_class
from masking.attention.triton_tile import LOG2E, lengths_of, product, put_rows, rows_of, weigh


@triton.jit
def small_kernel(
    q, k, v, out, grad, lse, dq, dk, dv, dalpha, dbefore, dafter, dbias, alpha, before, after, key_bias, query_classes,
    key_classes, query_lengths, key_lengths, stride_qb, stride_ql, stride_qh, stride_kb, stride_ks, stride_kh,
    stride_dqb, stride_dql, stride_dqh, stride_dkb, stride_dks, stride_dkh, num_heads, num_queries, num_keys, offset,
    scale, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr, NUM_CLASSES:
    tl.constexpr, BLOCK_C: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, SOFT: tl.constexpr, CAUSAL:
    tl.constexpr, BIAS: tl.constexpr, SELF: tl.constexpr, LENGTHS: tl.constexpr, ALPHA_GRAD: tl.constexpr, TABLE_GRAD:
    tl.constexpr, BIAS_GRAD: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip  # long: its arguments are the tensors of the family
    """Every gradient of one head: dq, dk, dv; partial sums for alpha (B * H), the tables (B, H, L, C) and the key bias
    (B, H, S), all float32."""
    image, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    wide, flat = image.to(tl.int64), tl.program_id(0).to(tl.int64)
    query_length, key_length = lengths_of(query_lengths, key_lengths, image, num_queries, num_keys, LENGTHS)
    row, key = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_S)
    queries = rows_of(q + wide * stride_qb + head * stride_qh, row, query_length, stride_ql, BLOCK_E, E, True)
    keys = rows_of(k + wide * stride_kb + head * stride_kh, key, key_length, stride_ks, BLOCK_E, E, True)
    values = rows_of(v + wide * stride_kb + head * stride_kh, key, key_length, stride_ks, BLOCK_E, E, True)
    plane = (wide * num_queries * num_heads + head) * E
    do = rows_of(grad + plane, row, query_length, num_heads * E, BLOCK_E, E, True)
    outputs = rows_of(out + plane, row, query_length, num_heads * E, BLOCK_E, E, True)
    kept = tl.load(lse + flat * num_queries + row, mask=row < num_queries, other=float("inf"))
    fall = tl.sum(do.to(tl.float32) * outputs.to(tl.float32), 1)
    place, query_class, key_class, weight = row + offset, row, key, 1.0
    if NUM_CLASSES > 0:
        query_class = tl.load(query_classes + wide * num_queries + row, mask=row < query_length, other=0).to(tl.int32)
        key_class = tl.load(key_classes + wide * num_keys + key, mask=key < key_length, other=0).to(tl.int32)
    if SOFT:
        weight = tl.load(alpha)
    zeros = tl.zeros((BLOCK_L, BLOCK_S), tl.float32)
    scores = product(queries, tl.trans(keys), zeros, F32) * (scale * LOG2E)
    g = product(do, tl.trans(values), zeros, F32)
    bias = zeros
    if BIAS:
        bias = tl.load(key_bias + key, mask=key < key_length, other=0.0)[None, :] * LOG2E
    scores, gate, soft = weigh(
        scores, place[:, None], key[None, :], query_class[:, None], key_class[None, :], bias, before, after, weight,
        query_length, key_length, NUM_CLASSES, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, offset, LENGTHS, True,
    )  # fmt: skip
    p = tl.exp2(scores - kept[:, None])
    own = (key[None, :] == place[:, None]).to(tl.int32)
    none = tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    table_rows = flat * num_queries * NUM_CLASSES
    if ALPHA_GRAD:
        later = tl.where(key[None, :] > place[:, None], p * g * gate, 0.0)
        tl.store(dalpha + tl.program_id(0), tl.sum(tl.sum(later, 1), 0))
    if AFTER and TABLE_GRAD:
        sums = sums_by_class(none, p * g * soft, key_class, own, NUM_CLASSES, BLOCK_C, SELF)
        put_rows(dafter + table_rows, row, num_queries, NUM_CLASSES, sums, BLOCK_C, NUM_CLASSES)
    share = p
    if AFTER:
        share, g = share * gate, g * gate
    if SOFT:
        share, g = share * soft, g * soft
    ds = p * (g - fall[:, None])
    if BEFORE and TABLE_GRAD:
        sums = sums_by_class(none, ds, key_class, own, NUM_CLASSES, BLOCK_C, SELF)
        put_rows(dbefore + table_rows, row, num_queries, NUM_CLASSES, sums, BLOCK_C, NUM_CLASSES)
    if BIAS_GRAD:
        tl.store(dbias + flat * num_keys + key, tl.sum(ds, 0), mask=key < num_keys)
    element = q.dtype.element_ty
    nothing_l, nothing_s = tl.zeros((BLOCK_L, BLOCK_E), tl.float32), tl.zeros((BLOCK_S, BLOCK_E), tl.float32)
    slopes, key_place = ds.to(element), wide * stride_dkb + head * stride_dkh
    row_place = wide * stride_dqb + head * stride_dqh
    dqs, dks = product(slopes, keys, nothing_l, F32), product(tl.trans(slopes), queries, nothing_s, F32)
    dvs = product(tl.trans(share.to(element)), do, nothing_s, F32)
    put_rows(dv + key_place, key, num_keys, stride_dks, dvs, BLOCK_E, E)
    put_rows(dq + row_place, row, num_queries, stride_dql, dqs * scale, BLOCK_E, E)
    put_rows(dk + key_place, key, num_keys, stride_dks, dks * scale, BLOCK_E, E)
