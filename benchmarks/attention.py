"""What attention costs, forward and backward: every branch of Lacuna's against eager matrices and torch's own.

    python benchmarks/attention.py [--rounds 7] [--quick] [--out FILE] [--table [FILE]]

Sides run in turn in one process, on one thread of a CPU or on the GPU; the minimum of the rounds counts (CPU: processor
time, so that other people's work does not). On a GPU `ms` is a replay of one forward and backward captured as a CUDA
graph: the kernels alone, as in a compiled step or one whose Python runs ahead of the GPU; `called_ms` is the same
called from Python again and again, and counts for the few sides that cannot be captured. Beside each time: the error of
output and gradients against fp64, and the bytes kept for backward. Writes benchmarks/results/attention-cpu.json or
attention-gpu.json. Ends with 1 where the dispatcher chose a branch more than 5 % slower than the best.

`--table`, on a GPU, also puts what the branches took into blocks.json, where the dispatcher reads it; `--table FILE`
does that with an earlier result, measures nothing, and needs no GPU."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.attention_table import write_table
from benchmarks.sides import attentions
from masking.attention.op import BRANCHES, Shape, choose, forced, self_attention
from masking.attention.weighting import Weighting

RESULTS = Path(__file__).parent / "results"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = (torch.bfloat16,) if CUDA else (torch.float32, torch.bfloat16)
HEADS = {32: 16, 64: 12}  # MAE's decoder, a ViT-B
FLEX_LENGTH = 197  # alone: FlexAttention compiles for half a minute for every length
TOLERANCE = 1.05  # how much slower than the best branch the chosen one may be


def weightings(batch: int, length: int) -> Iterator[tuple[str, Weighting]]:
    """Name and member: iLLaMA's soft mask over its schedule, visible tokens that never see hidden ones, padding."""
    rng = torch.Generator().manual_seed(0)
    yield "plain", Weighting()
    for alpha in (0.0, 0.37, 1.0) if CUDA else (0.37,):
        yield f"soft mask {alpha:g}", Weighting(alpha=torch.tensor(alpha, device=DEVICE))
    classes = torch.randint(0, 2, (batch, length), generator=rng).to(DEVICE, torch.int8)
    table = torch.tensor([[1.0, 0.0], [1.0, 1.0]], device=DEVICE)
    yield "hard classes", Weighting(before=table, query_classes=classes, key_classes=classes)
    yield "classes after", Weighting(after=table * 0.5, query_classes=classes, key_classes=classes)
    yield "lengths", Weighting(key_lengths=torch.randint(length // 2, length + 1, (batch,), generator=rng).to(DEVICE))


def branch(name: str) -> attentions.Side:
    """One of Lacuna's branches."""

    def side(qkv: Tensor, weighting: Weighting) -> Tensor:
        with forced(name):
            return self_attention(qkv, None, weighting)

    return side


def sides(weighting: Weighting, length: int) -> dict[str, attentions.Side]:
    """Everything that can compute this member here, by name, and ordinary attention of the same shape."""
    found = {"matmul": branch("matmul"), "eager": attentions.eager}
    if not weighting.is_gated():
        found["sdpa"] = branch("sdpa")
    if CUDA:
        found |= {"triton": branch("triton"), "eager, autocast": attentions.published}
    if weighting.alpha is not None:
        found["doubled keys"] = attentions.doubled
        if CUDA and length == FLEX_LENGTH:
            found |= {"flex, doubled keys": attentions.flex_doubled, "flex, merged": attentions.flex_merged}
    if weighting.is_plain() and CUDA:
        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            found[f"sdpa, {backend.lower()}"] = attentions.one_backend(getattr(SDPBackend, backend))
    if not weighting.is_plain():
        found["plain sdpa"] = attentions.plain_sdpa
    return found


def once(side: attentions.Side, qkv: Tensor, grad: Tensor, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """Output and gradient of the projection."""
    qkv = qkv.detach().requires_grad_()
    out = side(qkv, weighting).contiguous()  # as the projection behind it needs it
    return out.detach(), torch.autograd.grad(out, qkv, grad)[0]


def kept_bytes(side: attentions.Side, qkv: Tensor, weighting: Weighting) -> int:
    """Bytes that forward keeps for backward, every storage once, the projection itself included."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = side(qkv.detach().requires_grad_(), weighting)
    del kept
    return sum(storages.values())


def timed(side: attentions.Side, qkv: Tensor, grad: Tensor, weighting: Weighting, repeats: int) -> float:
    """Milliseconds of one forward and backward, the mean of `repeats`: of this thread on a CPU; on a GPU from the first
    call to the last kernel, Python's way to the kernels included."""
    if not CUDA:
        began = time.process_time()
        for _ in range(repeats):
            once(side, qkv, grad, weighting)
        return (time.process_time() - began) / repeats * 1e3
    return between_events(lambda: once(side, qkv, grad, weighting), repeats)


def between_events(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the GPU's clock a call."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / repeats


def replayed(
    every: dict[str, attentions.Side], called: dict[str, float], qkv: Tensor, grad: Tensor, weighting: Weighting,
    rounds: int,
) -> dict[str, float]:  # fmt: skip
    """Milliseconds of every side's kernels alone; of a side that cannot be captured, what it took when called."""
    graphs, best = {}, dict(called)
    for side in called:
        try:
            graphs[side] = captured(every[side], qkv, grad, weighting)
        except RuntimeError:
            torch.cuda.synchronize()
            continue
        graphs[side].replay()
        best[side] = float("inf")
    for _, (side, graph) in product(range(rounds), graphs.items()):
        best[side] = min(best[side], between_events(graph.replay, 20))
    return best


def captured(side: attentions.Side, qkv: Tensor, grad: Tensor, weighting: Weighting) -> torch.cuda.CUDAGraph:
    """One forward and backward as a CUDA graph. Raises RuntimeError where a side waits for the GPU on the way."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once(side, qkv, grad, weighting)
    return graph


def measure(batch: int, length: int, width: int, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a member: times, errors and bytes of every side, and what the dispatcher would take."""
    rng = torch.Generator().manual_seed(1)
    qkv = torch.randn(batch, length, 3, HEADS[width], width, generator=rng).to(DEVICE, dtype)
    grad = torch.randn(batch, length, HEADS[width], width, generator=rng).to(DEVICE, dtype)
    for name, weighting in weightings(batch, length):
        exact = once(attentions.eager, qkv[:4].double(), grad[:4].double(), _first(weighting))
        every = sides(weighting, length)
        best, errors, failed = {}, {}, {}
        for side, function in every.items():
            try:
                got = once(function, qkv[:4], grad[:4], _first(weighting))
                once(function, qkv, grad, weighting)  # allocates, and compiles what compiles
            except RuntimeError as error:  # a backend that refuses this shape
                failed[side] = str(error).splitlines()[0]
                continue
            best[side] = float("inf")
            pairs = zip(got, exact, strict=True)
            errors[side] = [float((one.double() - true).norm() / true.norm()) for one, true in pairs]
        called = dict(best)
        for _, side in product(range(rounds), best):
            called[side] = min(called[side], timed(every[side], qkv, grad, weighting, 20 if CUDA else 1))
        best = replayed(every, called, qkv, grad, weighting, rounds) if CUDA else called
        kept = {side: kept_bytes(every[side], qkv, weighting) for side in best}
        yield {
            "member": name, "describe": weighting.describe(), "dtype": str(dtype)[6:], "batch": batch, "heads":
            HEADS[width], "length": length, "head_dim": width,
            **({} if CUDA else choice(choose(DEVICE, dtype, weighting, Shape(width, length, length)).name, best)),
            "ms": {side: round(value, 4) for side, value in best.items()},
            "called_ms": {side: round(value, 4) for side, value in called.items()} if CUDA else None,
            "error_out_grad": {side: [float(f"{value:.2g}") for value in values] for side, values in errors.items()},
            "kept_mb": {side: round(value / 1e6, 3) for side, value in kept.items()}, "failed": failed,
        }  # fmt: skip


def choice(chosen: str, ms: dict[str, float]) -> dict[str, Any]:
    """The branch taken, its time over that of the best branch, and what eager matrices take over it."""
    ours = min(ms[side] for side in BRANCHES if side in ms)
    return {"chosen": chosen, "chosen_over_best": round(ms[chosen] / ours, 3),
            "eager_over_chosen": round(ms["eager"] / ms[chosen], 3)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="iLLaMA's and the decoder's shape alone")
    parser.add_argument("--out", type=Path, default=RESULTS / f"attention-{'gpu' if CUDA else 'cpu'}.json")
    parser.add_argument("--table", nargs="?", const=Path(), type=Path, metavar="FILE", help="put into blocks.json "
                        "what is measured now (GPU), or was in an earlier result")  # fmt: skip
    args = parser.parse_args()
    if args.table and args.table != Path():
        write_table(json.loads(args.table.read_text()), args.table)
        return 0
    if args.table and not CUDA:
        parser.error("--table without a file needs a GPU: on a CPU the kernels only run in the interpreter")
    torch.set_num_threads(1)
    torch.zeros(31 << 18)  # glibc then keeps blocks of up to this size when freed, as it does in any training process
    sizes = ((197, 64), (197, 32)) if args.quick else ((50, 64), (65, 64), (197, 64), (257, 64), (50, 32), (197, 32))
    rows = []
    for (length, width), dtype in product(sizes, DTYPES):
        batch = 128 if CUDA else 32 if length < 100 else 8
        for row in measure(batch, length, width, dtype, args.rounds):
            rows.append(row)
            print(row["dtype"], length, width, row["member"], row["ms"], row.get("chosen", ""), flush=True)
    result = {
        "command": "python " + " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"), "device": DEVICE,
        "gpu": torch.cuda.get_device_name() if CUDA else None,
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()) if CUDA else None,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "threads": 1, "load": os.getloadavg()[0], "rounds": args.rounds,
        "worst_choice": None if CUDA else max(row["chosen_over_best"] for row in rows), "rows": rows,
    }  # fmt: skip
    args.out.parent.mkdir(exist_ok=True, parents=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.table:
        write_table(result, args.out)
    return int(not CUDA and result["worst_choice"] > TOLERANCE)


def _first(weighting: Weighting, images: int = 4) -> Weighting:
    """The same for the first images alone: what fp64 is computed for."""
    cut = {name: getattr(weighting, name)[:images]
           for name in ("key_lengths", "query_lengths", "query_classes", "key_classes")
           if getattr(weighting, name) is not None}  # fmt: skip
    return Weighting(**{**weighting.__dict__, **cut})


if __name__ == "__main__":
    sys.exit(main())
