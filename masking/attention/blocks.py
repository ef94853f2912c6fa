"""Block sizes, warps and pipeline depth of the kernels: data in blocks.json, chosen ahead of time, never while
training.

Every row was compiled for its GPU without spilling registers, for every member of the family; triton_ahead.py checks
that, and writes the most registers and shared memory that any of them needs."""

from __future__ import annotations

import json
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


def pick(kernel: str, arch: str, tables: bool, head_dim: int, num_queries: int, num_keys: int) -> Block:
    """The blocks of "forward", "query", "key" or "small" on one of ARCHES, with tables of classes or without, no larger
    than the problem. Raises ValueError for a head dimension without a row."""
    wanted = (kernel, arch, tables, columns(head_dim))
    for row in _TABLE["kernels"]:
        if (row["kernel"], row["arch"], row["tables"], row["head_dim"]) == wanted:
            fitting = (min(row["queries"], power_of_2(num_queries)), min(row["keys"], power_of_2(num_keys)))
            return Block(*fitting, row["warps"], row["stages"])
    raise ValueError(f"the attention kernels have no blocks for heads of {head_dim}, but up to {max(head_dims())}")


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


def head_dims() -> list[int]:
    """Head dimensions that have rows."""
    return sorted({row["head_dim"] for row in _TABLE["kernels"]})


def columns(head_dim: int) -> int:
    """Columns a block gives a head: the power of two it rounds up to, 32 at least."""
    return max(32, power_of_2(head_dim))


def power_of_2(size: int) -> int:
    """The next power of two, 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


def measured(gpu: str, member: str, head_dim: int, num_queries: int, num_keys: int) -> float | None:
    """How many times as fast as torch's best fused attention the kernels ran, forward and backward, on this GPU; None
    where nobody measured."""
    size = [head_dim, num_queries, num_keys]
    for row in _TABLE["measured"]:
        if (row["gpu"], row["member"], row["size"]) == (gpu, member, size):
            return float(row["ratio"])
    return None


def write(kernels: list[dict[str, Any]], measured: list[dict[str, Any]]) -> None:
    """Replaces the table: one line a row, so that a change can be read."""
    sections = {"kernels": kernels, "measured": measured}
    texts = {name: ",\n".join(f"    {json.dumps(row)}" for row in rows) for name, rows in sections.items()}
    body = ",\n".join(f'  "{name}": [\n{text}\n  ]' if text else f'  "{name}": []' for name, text in texts.items())
    PATH.write_text(f"{{\n{body}\n}}\n")


_TABLE: dict[str, Any] = json.loads(PATH.read_text())
