"""The backward kernels, from the output, its gradient and L alone (FlashAttention's formulas, with gates).

    p_ij = u_ij e^(s_ij - L_i)      g_ij = do_i . v_j      delta_i = do_i . o_i      ds_ij = p_ij (r_ij g_ij - delta_i)
    dq = scale ds k      dk = scale ds^T q      dv = (r p)^T do
    d alpha = sum over later keys of p_ij g_ij      d after[c, c'] = sum of p_ij g_ij      d log before[c, c'] = sum of
    ds_ij

Sums over programs are left to torch, from one partial result a program or row: no atomics, so two runs give the same
bits. Up to 64 queries and keys one kernel does it all; beyond, one is for queries and one for keys."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from masking.attention.triton_tile import LOG2E, lengths_of, product, put_rows, rows_of, weigh


@triton.jit
def sums_by_class(sums, values, key_class, own, NUM_CLASSES: tl.constexpr, BLOCK_C: tl.constexpr, SELF: tl.constexpr):
    """sums (rows, BLOCK_C) + the sum of values (rows, keys) over the keys of each class, a token's own key left out."""
    column = tl.arange(0, BLOCK_C)
    for c in tl.static_range(NUM_CLASSES):
        counted = key_class[None, :] == c
        if SELF:
            counted = counted & (own == 0)
        sums += tl.where(column[None, :] == c, tl.sum(tl.where(counted, values, 0.0), 1)[:, None], 0.0)
    return sums


@triton.jit
def query_block(
    dq, dalpha, dbefore, dafter, q, do, lse, delta, k, v, start, place, query_class, key_classes, key_bias, before,
    after, alpha, query_length, key_length, stride_ks, scale, offset,
    E: tl.constexpr, BLOCK_E: tl.constexpr, WIDTH: tl.constexpr, NUM_CLASSES: tl.constexpr, BLOCK_C: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, SOFT: tl.constexpr, CAUSAL: tl.constexpr, BIAS: tl.constexpr,
    SELF: tl.constexpr, LENGTHS: tl.constexpr, MASKED: tl.constexpr, ALPHA_GRAD: tl.constexpr, TABLE_GRAD: tl.constexpr,
    F32: tl.constexpr,
):  # fmt: skip  # long: every sum of a row of queries in one pass over a block of keys
    """The sums of dq, d alpha and the tables' rows after one block of WIDTH keys from `start`."""
    key = start + tl.arange(0, WIDTH)
    keys = rows_of(k, key, key_length, stride_ks, BLOCK_E, E, MASKED)
    values = rows_of(v, key, key_length, stride_ks, BLOCK_E, E, MASKED)
    zeros = tl.zeros((q.shape[0], WIDTH), tl.float32)
    scores = product(q, tl.trans(keys), zeros, F32) * (scale * LOG2E)
    g = product(do, tl.trans(values), zeros, F32)
    key_class, bias = key, scores
    if NUM_CLASSES > 0:
        key_class = tl.load(key_classes + key, mask=key < key_length, other=0).to(tl.int32)
    if BIAS:
        bias = tl.load(key_bias + key, mask=key < key_length, other=0.0)[None, :] * LOG2E
    scores, gate, soft = weigh(
        scores, place[:, None], key[None, :], query_class[:, None], key_class[None, :], bias, before, after, alpha,
        query_length, key_length, NUM_CLASSES, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, offset, LENGTHS, MASKED,
    )  # fmt: skip
    p = tl.exp2(scores - lse[:, None])
    own = (key[None, :] == place[:, None]).to(tl.int32)
    if ALPHA_GRAD:
        dalpha += tl.sum(tl.where(key[None, :] > place[:, None], p * g * gate, 0.0), 1)
    if AFTER and TABLE_GRAD:
        dafter = sums_by_class(dafter, p * g * soft, key_class, own, NUM_CLASSES, BLOCK_C, SELF)
    if AFTER:
        g = g * gate
    if SOFT:
        g = g * soft
    ds = p * (g - delta[:, None])
    if BEFORE and TABLE_GRAD:
        dbefore = sums_by_class(dbefore, ds, key_class, own, NUM_CLASSES, BLOCK_C, SELF)
    return product(ds.to(k.dtype.element_ty), keys, dq, F32), dalpha, dbefore, dafter


@triton.jit
def query_kernel(
    q, k, v, out, grad, lse, delta, dq, dalpha, dbefore, dafter, alpha, before, after, key_bias, query_classes,
    key_classes, query_lengths, key_lengths, stride_qb, stride_ql, stride_qh, stride_kb, stride_ks, stride_kh,
    stride_dqb, stride_dql, stride_dqh, num_heads, num_queries, num_keys, offset, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr, TAIL: tl.constexpr,
    MASKED: tl.constexpr, NUM_CLASSES: tl.constexpr, BLOCK_C: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    SOFT: tl.constexpr, CAUSAL: tl.constexpr, BIAS: tl.constexpr, SELF: tl.constexpr, LENGTHS: tl.constexpr,
    ALPHA_GRAD: tl.constexpr, TABLE_GRAD: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip  # long: its arguments are the tensors of the family
    """For a block of queries: dq, delta for the kernel of the keys, and partial sums for alpha (one a program) and the
    tables (one a row and class of keys)."""
    image, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    wide = image.to(tl.int64)
    query_length, key_length = lengths_of(query_lengths, key_lengths, image, num_queries, num_keys, LENGTHS)
    row = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    queries = rows_of(q + wide * stride_qb + head * stride_qh, row, query_length, stride_ql, BLOCK_E, E, True)
    plane, stride_out = (wide * num_queries * num_heads + head) * E, num_heads * E
    do = rows_of(grad + plane, row, query_length, stride_out, BLOCK_E, E, True)
    outputs = rows_of(out + plane, row, query_length, stride_out, BLOCK_E, E, True)
    flat = tl.program_id(1).to(tl.int64) * num_queries + row
    kept = tl.load(lse + flat, mask=row < num_queries, other=float("inf"))
    fall = tl.sum(do.to(tl.float32) * outputs.to(tl.float32), 1)
    tl.store(delta + flat, fall, mask=row < num_queries)
    k += wide * stride_kb + head * stride_kh
    v += wide * stride_kb + head * stride_kh
    place, query_class, weight = row + offset, row, 1.0
    if NUM_CLASSES > 0:
        query_class = tl.load(query_classes + wide * num_queries + row, mask=row < query_length, other=0).to(tl.int32)
        key_classes += wide * num_keys
    if SOFT:
        weight = tl.load(alpha)
    acc, sum_alpha = tl.zeros((BLOCK_L, BLOCK_E), tl.float32), tl.zeros((BLOCK_L,), tl.float32)
    sum_before, sum_after = tl.zeros((BLOCK_L, BLOCK_C), tl.float32), tl.zeros((BLOCK_L, BLOCK_C), tl.float32)
    last = key_length
    if CAUSAL:
        last = tl.minimum(key_length, (tl.program_id(0) + 1) * BLOCK_L + offset)
    end = last if MASKED else num_keys // BLOCK_S * BLOCK_S
    for start in tl.range(0, end, BLOCK_S):
        acc, sum_alpha, sum_before, sum_after = query_block(
            acc, sum_alpha, sum_before, sum_after, queries, do, kept, fall, k, v, start, place, query_class,
            key_classes, key_bias, before, after, weight, query_length, key_length, stride_ks, scale, offset, E,
            BLOCK_E, BLOCK_S, NUM_CLASSES, BLOCK_C, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, LENGTHS, MASKED,
            ALPHA_GRAD, TABLE_GRAD, F32,
        )  # fmt: skip
    if TAIL > 0:
        acc, sum_alpha, sum_before, sum_after = query_block(
            acc, sum_alpha, sum_before, sum_after, queries, do, kept, fall, k, v, end, place, query_class, key_classes,
            key_bias, before, after, weight, query_length, key_length, stride_ks, scale, offset, E, BLOCK_E, TAIL,
            NUM_CLASSES, BLOCK_C, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, LENGTHS, True, ALPHA_GRAD, TABLE_GRAD, F32,
        )  # fmt: skip
    put_rows(dq + wide * stride_dqb + head * stride_dqh, row, num_queries, stride_dql, acc * scale, BLOCK_E, E)
    if ALPHA_GRAD:
        tl.store(dalpha + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(sum_alpha, 0))
    if TABLE_GRAD:
        block = tl.program_id(1).to(tl.int64) * num_queries * NUM_CLASSES
        put_rows(dbefore + block, row, num_queries, NUM_CLASSES, sum_before, BLOCK_C, NUM_CLASSES)
        put_rows(dafter + block, row, num_queries, NUM_CLASSES, sum_after, BLOCK_C, NUM_CLASSES)


@triton.jit
def key_block(
    dk, dv, dbias, k, v, q, do, lse, delta, start, key, key_class, query_classes, key_bias, before, after, alpha,
    query_length, key_length, stride_ql, stride_out, scale, offset,
    E: tl.constexpr, BLOCK_E: tl.constexpr, WIDTH: tl.constexpr, NUM_CLASSES: tl.constexpr, BEFORE: tl.constexpr,
    AFTER: tl.constexpr, SOFT: tl.constexpr, CAUSAL: tl.constexpr, BIAS: tl.constexpr, SELF: tl.constexpr,
    LENGTHS: tl.constexpr, MASKED: tl.constexpr, BIAS_GRAD: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """The sums of dk, dv and d key_bias after one block of WIDTH queries from `start`; the tile is keys x queries."""
    row = start + tl.arange(0, WIDTH)
    place, query_class = row + offset, row
    queries = rows_of(q, row, query_length, stride_ql, BLOCK_E, E, MASKED)
    grads = rows_of(do, row, query_length, stride_out, BLOCK_E, E, MASKED)
    kept = tl.load(lse + row, mask=row < query_length, other=float("inf"))
    fall = tl.load(delta + row, mask=row < query_length, other=0.0)
    zeros = tl.zeros((k.shape[0], WIDTH), tl.float32)
    scores = product(k, tl.trans(queries), zeros, F32) * (scale * LOG2E)
    g = product(v, tl.trans(grads), zeros, F32)
    if NUM_CLASSES > 0:
        query_class = tl.load(query_classes + row, mask=row < query_length, other=0).to(tl.int32)
    scores, gate, soft = weigh(
        scores, place[None, :], key[:, None], query_class[None, :], key_class[:, None], key_bias[:, None], before,
        after, alpha, query_length, key_length, NUM_CLASSES, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, offset, LENGTHS,
        True,
    )  # fmt: skip
    p = tl.exp2(scores - kept[None, :])
    share = p
    if AFTER:
        share, g = share * gate, g * gate
    if SOFT:
        share, g = share * soft, g * soft
    ds = p * (g - fall[None, :])
    if BIAS_GRAD:
        dbias += tl.sum(ds, 1)
    element = q.dtype.element_ty
    return product(ds.to(element), queries, dk, F32), product(share.to(element), grads, dv, F32), dbias


@triton.jit
def key_kernel(
    q, k, v, grad, lse, delta, dk, dv, dbias, alpha, before, after, key_bias, query_classes, key_classes, query_lengths,
    key_lengths, stride_qb, stride_ql, stride_qh, stride_kb, stride_ks, stride_kh, stride_dkb, stride_dks, stride_dkh,
    num_heads, num_queries, num_keys, offset, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr, TAIL: tl.constexpr,
    MASKED: tl.constexpr, NUM_CLASSES: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, SOFT: tl.constexpr,
    CAUSAL: tl.constexpr, BIAS: tl.constexpr, SELF: tl.constexpr, LENGTHS: tl.constexpr, BIAS_GRAD: tl.constexpr,
    F32: tl.constexpr,
):  # fmt: skip  # long: its arguments are the tensors of the family
    """For a block of keys: dk, dv, and each head's own gradient of the key bias (B, H, S) float32."""
    image, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    wide = image.to(tl.int64)
    query_length, key_length = lengths_of(query_lengths, key_lengths, image, num_queries, num_keys, LENGTHS)
    key = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    keys = rows_of(k + wide * stride_kb + head * stride_kh, key, key_length, stride_ks, BLOCK_E, E, True)
    values = rows_of(v + wide * stride_kb + head * stride_kh, key, key_length, stride_ks, BLOCK_E, E, True)
    q += wide * stride_qb + head * stride_qh
    grad += (wide * num_queries * num_heads + head) * E
    lse += tl.program_id(1).to(tl.int64) * num_queries
    delta += tl.program_id(1).to(tl.int64) * num_queries
    key_class, bias, weight = key, tl.zeros((BLOCK_S,), tl.float32), 1.0
    if NUM_CLASSES > 0:
        key_class = tl.load(key_classes + wide * num_keys + key, mask=key < key_length, other=0).to(tl.int32)
        query_classes += wide * num_queries
    if BIAS:
        bias = tl.load(key_bias + key, mask=key < key_length, other=0.0) * LOG2E
    if SOFT:
        weight = tl.load(alpha)
    acc_k, acc_v = tl.zeros((BLOCK_S, BLOCK_E), tl.float32), tl.zeros((BLOCK_S, BLOCK_E), tl.float32)
    sum_bias = tl.zeros((BLOCK_S,), tl.float32)
    first = 0
    if CAUSAL:
        first = tl.maximum(tl.program_id(0) * BLOCK_S - offset, 0) // BLOCK_L * BLOCK_L
    end = query_length if MASKED else num_queries // BLOCK_L * BLOCK_L
    for start in tl.range(first, end, BLOCK_L):
        acc_k, acc_v, sum_bias = key_block(
            acc_k, acc_v, sum_bias, keys, values, q, grad, lse, delta, start, key, key_class, query_classes, bias,
            before, after, weight, query_length, key_length, stride_ql, num_heads * E, scale, offset, E, BLOCK_E,
            BLOCK_L, NUM_CLASSES, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, LENGTHS, MASKED, BIAS_GRAD, F32,
        )  # fmt: skip
    if TAIL > 0:
        acc_k, acc_v, sum_bias = key_block(
            acc_k, acc_v, sum_bias, keys, values, q, grad, lse, delta, end, key, key_class, query_classes, bias, before,
            after, weight, query_length, key_length, stride_ql, num_heads * E, scale, offset, E, BLOCK_E, TAIL,
            NUM_CLASSES, BEFORE, AFTER, SOFT, CAUSAL, BIAS, SELF, LENGTHS, True, BIAS_GRAD, F32,
        )  # fmt: skip
    place_out = wide * stride_dkb + head * stride_dkh
    put_rows(dk + place_out, key, num_keys, stride_dks, acc_k * scale, BLOCK_E, E)
    put_rows(dv + place_out, key, num_keys, stride_dks, acc_v, BLOCK_E, E)
    if BIAS_GRAD:
        tl.store(dbias + tl.program_id(1).to(tl.int64) * num_keys + key, sum_bias, mask=key < num_keys)
