"""What the kernels share: one tile of weighted scores, matrix products, and places in memory.

A tile is queries x keys, or keys x queries in the kernel for dk and dv: `place` and `key`, and the classes beside
them, come shaped as a column and a row or the other way round, and everything here broadcasts. Scores are in units of
log 2."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NEVER = tl.constexpr(float("-inf"))


@triton.jit
def product(a, b, total, F32: tl.constexpr):
    """total + a b in float32. The interpreter's products of bf16 work on bit patterns: there F32 is on."""
    if F32:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def by_class(table, query_class, key_class, like, NUM_CLASSES: tl.constexpr, LOG: tl.constexpr):
    """Entry (query_class, key_class) of table (C, C) for every pair of the tile, as logarithms where LOG; a select for
    each class instead of a gather for each pair."""
    found = tl.zeros(like.shape, tl.float32)
    for c in tl.static_range(NUM_CLASSES):
        entry = tl.load(table + query_class * NUM_CLASSES + c)
        if LOG:
            entry = tl.where(entry > 0, tl.log2(tl.maximum(entry, 1e-37)), NEVER)
        found = tl.where(key_class == c, entry, found)
    return found


@triton.jit
def weigh(
    scores, place, key, query_class, key_class, key_bias, before, after, alpha, query_length, key_length,
    NUM_CLASSES: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, SOFT: tl.constexpr, CAUSAL: tl.constexpr,
    BIAS: tl.constexpr, SELF: tl.constexpr, OFFSET_BY, LENGTHS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The tile's scores + log u, and its gate r in two factors: the tables' and the soft mask's. key_bias is the row of
    keys already in units of log 2; place is the query's among the keys."""
    gate, soft = tl.full(scores.shape, 1.0, tl.float32), tl.full(scores.shape, 1.0, tl.float32)
    if BEFORE:
        logs = by_class(before, query_class, key_class, scores, NUM_CLASSES, True)
        scores += tl.where(key == place, 0.0, logs) if SELF else logs
    if AFTER:
        entries = by_class(after, query_class, key_class, scores, NUM_CLASSES, False)
        gate = tl.where(key == place, 1.0, entries) if SELF else entries
    if BIAS:
        scores += key_bias
    if SOFT:
        soft = tl.where(key > place, alpha, soft)
    if CAUSAL:
        scores = tl.where(key > place, NEVER, scores)
    if MASKED:
        scores = tl.where(key < key_length, scores, NEVER)
    if LENGTHS:
        scores = tl.where(place - OFFSET_BY < query_length, scores, NEVER)
    return scores, gate, soft


@triton.jit
def rows_of(base, row, length, stride, BLOCK_E: tl.constexpr, E: tl.constexpr, MASKED: tl.constexpr):
    """Rows `row` of a matrix (length, E) whose rows lie `stride` apart: (rows, BLOCK_E), zeros beyond its edges."""
    column = tl.arange(0, BLOCK_E)
    at = base + row[:, None] * stride + column[None, :]
    if E < BLOCK_E:
        return tl.load(at, mask=(row[:, None] < length) & (column[None, :] < E), other=0.0)
    if MASKED:
        return tl.load(at, mask=row[:, None] < length, other=0.0)
    return tl.load(at)


@triton.jit
def put_rows(base, row, length, stride, values, BLOCK_E: tl.constexpr, E: tl.constexpr):
    """Writes what `rows_of` reads, rounded to the memory's type."""
    column = tl.arange(0, BLOCK_E)
    inside = (row[:, None] < length) & (column[None, :] < E)
    tl.store(base + row[:, None] * stride + column[None, :], values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def lengths_of(query_lengths, key_lengths, image, num_queries, num_keys, LENGTHS: tl.constexpr):
    """Queries and keys of this image that are no padding."""
    if LENGTHS:
        return tl.load(query_lengths + image), tl.load(key_lengths + image)
    return num_queries, num_keys
