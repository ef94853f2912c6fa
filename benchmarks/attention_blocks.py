"""Every attention kernel with every block size on this GPU: what it takes in a CUDA graph, and whether it spills.

    python benchmarks/attention_blocks.py --out attention-blocks.json     on the GPU; a minute and a half on 16 cores
    python benchmarks/attention_blocks.py --table attention-blocks.json   anywhere: the fastest go into blocks.json

Then `python -m masking.attention.triton_ahead --write` compiles every member of the family with them: what spills there
is to be replaced by the next in the list."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from masking.attention import blocks, triton_launch
from masking.attention.blocks import Block
from masking.attention.weighting import Weighting

SIZES = ((64, 64), (64, 32), (64, 128), (128, 32), (128, 64), (128, 128), (32, 64))  # queries and keys
HEADS = {32: 16, 64: 12}  # of MAE's decoder, and of ViT-B and iLLaMA-B
BATCH = 128
SAME = 1.02  # times so close are no reason to prefer one


class Case(NamedTuple):
    """One kernel at one block."""

    kernel: str
    tables: bool
    head_dim: int
    block: Block


def cases() -> Iterator[Case]:
    """All of them."""
    for kernel, tables, width in product(("forward", "query", "key"), (False, True), HEADS):
        for (queries, keys), warps, stages in product(SIZES, (4, 8), (1, 2, 3)):
            yield Case(kernel, tables, width, Block(queries, keys, warps, stages))
    for tables, width, warps in product((False, True), HEADS, (2, 4, 8)):
        yield Case("small", tables, width, Block(64, 64, warps, 1))


def call(case: Case, batch: int) -> Any:
    """A function that launches the kernel once: iLLaMA's soft mask, or a table of classes, and no small gradients."""
    length = 50 if case.kernel == "small" else 197
    rng = torch.Generator("cuda").manual_seed(1)
    shape = (batch, length, 3, HEADS[case.head_dim], case.head_dim)
    qkv = torch.randn(shape, generator=rng, device="cuda", dtype=torch.bfloat16)
    weighting = Weighting(alpha=torch.tensor(0.37, device="cuda"))
    if case.tables:
        classes = torch.randint(0, 2, (batch, length), generator=rng, device="cuda", dtype=torch.int8)
        table = torch.tensor([[1.0, 0.5], [0.5, 1.0]], device="cuda")
        weighting = Weighting(before=table, query_classes=classes, key_classes=classes, see_self=True)
    tensors, fixed = triton_launch.forward_call([qkv], length, weighting)
    if case.kernel != "forward":
        out, lse = tensors["out"].normal_(), tensors["lse"].fill_(8.0)
        _, tensors, fixed = triton_launch.backward_call(out, out, lse, [qkv], length, weighting, triton_launch.Needs())
        tensors["delta"].zero_()
    own, grid = triton_launch.sized(case.kernel, tensors, fixed.numbers, case.block)
    kernel = triton_launch.KERNELS[case.kernel][grid]
    return lambda: kernel(**own, num_warps=case.block.warps, num_stages=case.block.stages)


def compile_one(case: Case) -> None:
    """Into Triton's cache on the disk; what cannot be compiled says so when it is measured."""
    try:
        call(case, 2)()
    except Exception:
        return


def measure(case: Case) -> dict[str, Any]:
    """Microseconds of one launch, and what the compiler gave it; or why there is none."""
    row: dict[str, Any] = {**case._asdict(), "block": list(case.block)}
    try:
        launch = call(case, BATCH)
        made = launch()
        us = replayed(launch)
    except Exception as error:
        return {**row, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    row |= {"us": round(us, 2), "registers": made.n_regs, "spilled": made.n_spills, "shared": made.metadata.shared}
    return row


def replayed(launch: Callable[[], object], launches: int = 10, replays: int = 5) -> float:
    """Microseconds of one launch: the fastest replay of a CUDA graph of several."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            launch()
    graph.replay()
    found = []
    for _ in range(replays):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / launches * 1e3)
    return min(found)


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of blocks.json for this GPU's kind, the fastest that spill nothing; of equals the one with least shared
    memory."""
    found: dict[tuple[str, bool, int], dict[str, Any]] = {}
    for row in rows:
        key = (row["kernel"], row["tables"], row["head_dim"])
        if row.get("spilled") != 0:
            continue
        old = found.get(key)
        close = old is not None and row["us"] < old["us"] * SAME and row["shared"] < old["shared"]
        if old is None or row["us"] * SAME < old["us"] or close:
            found[key] = row
    return list(found.values())


def write(result: dict[str, Any]) -> None:
    """The best of a result into blocks.json, in place of the rows that are there."""
    known = json.loads(blocks.PATH.read_text())
    fastest = {(row["kernel"], row["tables"], row["head_dim"]): Block(*row["block"]) for row in best(result["rows"])}
    for row in known["kernels"]:
        block = fastest.get((row["kernel"], row["tables"], row["head_dim"]))
        if row["arch"] == result["arch"] and block is not None:
            row.update(block._asdict())
    blocks.write(known["kernels"], known["measured"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("attention-blocks.json"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="an earlier result's fastest go into blocks.json")
    parser.add_argument("--workers", type=int, default=14, help="processes that compile")
    args = parser.parse_args()
    if args.table:
        write(json.loads(args.table.read_text()))
        return
    if not torch.cuda.is_available():
        parser.error("a GPU is needed to time kernels; --table FILE reads an earlier result without one")
    every = list(cases())
    began = time.monotonic()
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(compile_one, every, chunksize=4), 1):
            if done % 50 == 0:
                print(f"compiled {done}/{len(every)}, {time.monotonic() - began:.0f} s", flush=True)
    rows = []
    for done, case in enumerate(every, 1):
        rows.append(measure(case))
        if done % 50 == 0:
            print(f"measured {done}/{len(every)}, {time.monotonic() - began:.0f} s", flush=True)
    result = {
        "command": "python " + " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(), "arch": blocks.arch_of(torch.cuda.get_device_capability()),
        "torch": torch.__version__, "batch": BATCH, "rows": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps({**result, "rows": []})[:-3] + "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]}\n")
    for row in best(rows):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
