"""Block sizes, warps and pipeline depth of the kernels, and what every branch took on GPUs that were measured: data in
blocks.json, made ahead of time, never while training.

Every row of blocks was compiled for its GPU without spilling registers, for every member of the family; triton_ahead.py
checks that, and writes the most registers and shared memory that any of them needs. Rows of measurements are those of
benchmarks/attention.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).with_name("blocks.json")
SMALL = 64  # queries and keys up to which backward is one kernel
ARCHES = ("sm_90a", "sm_80")
NARROW = (16, 32)  # widths of the last block


class Block(NamedTuple):
    """How a kernel is launched."""

    queries: int
    keys: int
    warps: int
    stages: int


class Measured(NamedTuple):
    """What the branches took for one member of the family."""

    ms: dict[str, float]  # milliseconds of forward and backward, by branch
    source: str  # which measurement that is, in words


def pick(kernel: str, arch: str, tables: bool, head_dim: int, num_queries: int, num_keys: int) -> Block:
    """The blocks of "forward", "query", "key" or "small" on one of ARCHES, with tables of classes or without, no larger
    than the problem. Raises ValueError for a head dimension without a row."""
    found = _BLOCKS.get((kernel, arch, tables, columns(head_dim)))
    if found is None:
        raise ValueError(f"the attention kernels have no blocks for heads of {head_dim}, but up to {max(HEAD_DIMS)}")
    fitting = (min(found.queries, power_of_2(num_queries)), min(found.keys, power_of_2(num_keys)))
    return found._replace(queries=fitting[0], keys=fitting[1])


def arch_of(capability: tuple[int, int]) -> str:
    """Whose rows a GPU of this compute capability takes: those of the H100 where it may have Hopper's shared memory,
    else those of the A100, which fit every GPU since."""
    return "sm_90a" if capability[0] in (9, 10) else "sm_80"


def tail(size: int, block: int) -> tuple[bool, int]:
    """How `size` rows are walked in blocks: whether every block is checked against the end, else the width of one
    narrow block after the full ones (0: none)."""
    rest = size % block
    for width in NARROW:
        if 0 < rest <= width < block:
            return False, width
    return rest > 0, 0


def columns(head_dim: int) -> int:
    """Columns a block gives a head: the power of two it rounds up to, 32 at least."""
    return max(32, power_of_2(head_dim))


def power_of_2(size: int) -> int:
    """The next power of two, 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


def measured(gpu: str, capability: str, member: str, head_dim: int, num_queries: int, num_keys: int) -> Measured | None:
    """What was measured of this member and heads of this width (rounded up as `columns` does) on this GPU, else on one
    of the same compute capability: at the nearest size, if queries and keys are within a factor of two. None where
    nobody measured."""
    best, distance = None, math.inf
    for row in _MEASURED.get((capability, member, columns(head_dim)), ()):
        _, queries, keys = row["size"]
        factors = [max(one, two) / min(one, two) for one, two in ((queries, num_queries), (keys, num_keys))]
        away = math.log(factors[0]) + math.log(factors[1]) + (0 if row["gpu"] == gpu else _OTHER_GPU)
        if max(factors) <= _NEAR and away < distance:
            best, distance = row, away
    if best is None:
        return None
    width, queries, keys = best["size"]
    size = f"{queries} queries, {keys} keys and heads of {width}"
    return Measured(best["ms"], f"{best['source']}, an {best['gpu']} at {size}")


def largest_measured() -> int:
    """The most queries or keys for which `measured` may know anything."""
    return int(_NEAR * max((max(row["size"][1:]) for rows in _MEASURED.values() for row in rows), default=0))


def write(kernels: list[dict[str, Any]], measured: list[dict[str, Any]]) -> None:
    """Replaces the table: one line a row, so that a change can be read."""
    sections = {"kernels": kernels, "measured": measured}
    texts = {name: ",\n".join(f"    {json.dumps(row)}" for row in rows) for name, rows in sections.items()}
    body = ",\n".join(f'  "{name}": [\n{text}\n  ]' if text else f'  "{name}": []' for name, text in texts.items())
    PATH.write_text(f"{{\n{body}\n}}\n")


_NEAR = 2.0
_OTHER_GPU = 2.0  # the same GPU's rows come first: more than two factors of _NEAR
_TABLE: dict[str, Any] = json.loads(PATH.read_text())
_BLOCKS = {(row["kernel"], row["arch"], row["tables"], row["head_dim"]): Block(*(row[name] for name in Block._fields))
           for row in _TABLE["kernels"]}  # fmt: skip
HEAD_DIMS = tuple(sorted({row["head_dim"] for row in _TABLE["kernels"]}))  # that have rows
_MEASURED: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
for _row in _TABLE["measured"]:
    _MEASURED.setdefault((_row["capability"], _row["member"], columns(_row["size"][0])), []).append(_row)
