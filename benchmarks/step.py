"""Our training step against plain MAE, interleaved in one process: `python benchmarks/step.py`.

Sides: "plain fp32" is benchmarks/sides/plain.py with torch's default AdamW; "plain amp" is the same under autocast to
bf16 (the default rival on a GPU); "ours fp32" and "ours bf16" are Lacuna's encoder and objective with fused AdamW, bf16
with fp32 master weights as DeepSpeed keeps them. A step is mask, forward, backward and update. All sides start from the
same weights and see the same images and masks; a ratio is void unless their first losses agree. Times are of rounds in
which every side takes its turn: minimum and median of wall clock and of the CPU time of the process.

Writes benchmarks/results/step-DEVICE.json. The CPU's default is ViT-B on one thread at batches of 8 and 32, where plain
attention no longer fits in the cache: about six minutes on a quiet machine."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import machine, versions, wait  # noqa: E402
from benchmarks.sides.build import Side, all_sides  # noqa: E402
from masking.rng import generator  # noqa: E402
from masking.strategies.uniform import Uniform  # noqa: E402
from pretrain.backbones.vit import ViTConfig  # noqa: E402
from pretrain.config import Config  # noqa: E402
from pretrain.data.settings import DataConfig  # noqa: E402
from pretrain.flops import peak_flops, train_flops_per_image  # noqa: E402
from pretrain.objectives.pixel import PixelMAEConfig  # noqa: E402

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3, "amp": 5e-3}  # of the first loss, relative to plain fp32's


def main() -> int:
    """Measures, prints and writes; 1 where the losses of two sides differ."""
    options = _options()
    torch.set_num_threads(options.threads)
    records = [measure(options, batch) for batch in options.batch]
    cuda = options.device != "cpu"
    result = {
        "command": " ".join(["python", "benchmarks/step.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(options.device),
        "versions": versions(),
        "runs": records,
    }
    if not options.no_write:
        path = Path(options.out or ROOT / "benchmarks" / "results" / f"step-{'cuda' if cuda else 'cpu'}.json")
        path.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row["void"] for record in records for row in record["sides"]))


def measure(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """All sides at one batch size: printed, and returned as data."""
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, generator=generator(0, "images"))
    images = images.to(options.device)
    sides = all_sides(options, images)
    for side in sides:
        _prepare(side, images)
    for number in range(1, options.rounds + 1):
        for side in sides:
            _time(side, number, options.steps, images.device)
    peaks = {name: _peak(images.device, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    flops = train_flops_per_image(
        Config("step", DataConfig("embedded"), ViTConfig(options.model), PixelMAEConfig(), Uniform(), steps=1)
    )
    record = _record(options, batch, sides, flops, peaks)
    _print(record)
    return record


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", choices=["tiny", "small", "base", "large", "huge"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="images a step (default 8 and 32 on a CPU, 64 and 256 on a GPU)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--rounds", type=int, help="turns of every side (default 5 on a CPU, 10 on a GPU)")
    parser.add_argument("--steps", type=int, help="steps in a turn (default 1 on a CPU, 10 on a GPU)")
    parser.add_argument("--amp", action="store_true", help="plain MAE under autocast too (always on a GPU)")
    parser.add_argument("--compile", action="store_true", help="torch.compile our side")
    parser.add_argument("--out", help="where to write instead of benchmarks/results")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    gpu = options.device != "cpu"
    options.batch = options.batch or ([64, 256] if gpu else [8, 32])
    options.rounds = options.rounds or (10 if gpu else 5)
    options.steps = options.steps or (10 if gpu else 1)
    options.amp |= gpu
    return options


def _prepare(side: Side, images: Tensor) -> None:
    """Warms up with step 0, whose loss is compared, and counts what it keeps for backward."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in side.model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        side.losses.append(side.step(0).item())
    side.saved_mb = sum(saved.values()) / len(images) / 1e6
    if images.is_cuda:
        rest = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        side.step(0)
        side.peak_mb = (torch.cuda.max_memory_allocated() - rest) / len(images) / 1e6


def _time(side: Side, number: int, steps: int, device: torch.device) -> None:
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for offset in range(steps):
        loss = side.step(number * steps + offset)
    wait(device)
    side.wall.append((time.perf_counter() - wall) / steps)
    side.cpu.append((time.process_time() - cpu) / steps)
    side.losses.append(loss.item())


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the device: from the table where it is there, else the best of a few large matrix products."""
    known = peak_flops(device, "bf16" if dtype == torch.bfloat16 else "fp32")
    if known is not None:
        return known
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def _record(
    options: argparse.Namespace, batch: int, sides: list[Side], flops: float, peaks: dict[str, float]
) -> dict[str, Any]:
    plain = {side.dtype: side for side in sides if side.name.startswith("plain")}
    rows = []
    for side in sides:
        peak = peaks["fp32" if side.dtype == "fp32" else "bf16"]
        rows.append({
            "side": side.name,
            "images_per_s": batch / min(side.wall),
            "images_per_s_median": batch / statistics.median(side.wall),
            "images_per_cpu_s": batch / min(side.cpu),
            "mfu": flops * batch / min(side.wall) / peak,
            "first_loss": side.losses[0],
            "loss_difference": abs(side.losses[0] / plain["fp32"].losses[0] - 1),
            "void": abs(side.losses[0] / plain["fp32"].losses[0] - 1) > TOLERANCE[side.dtype],
            "saved_for_backward_mb_per_image": side.saved_mb,
            "peak_mb_per_image": side.peak_mb,
        })  # fmt: skip
    named = {side.name: side for side in sides}
    pairs = [("ours bf16", "plain fp32"), ("ours fp32", "plain fp32"), ("ours bf16", "plain amp")]
    ratios = [_ratio(named[ours], named[other]) for ours, other in pairs if other in named]
    return {
        "model": f"ViT-{options.model}/16 at 224", "batch": batch, "threads": options.threads,
        "rounds": options.rounds, "steps_per_round": options.steps, "gflop_per_image": flops / 1e9,
        "peak_gflops": {name: peak / 1e9 for name, peak in peaks.items()}, "sides": rows, "ratios": ratios,
    }  # fmt: skip


def _ratio(ours: Side, other: Side) -> dict[str, Any]:
    return {
        "ours": ours.name,
        "other": other.name,
        "wall_min": min(other.wall) / min(ours.wall),
        "wall_median": statistics.median(other.wall) / statistics.median(ours.wall),
        "cpu_min": min(other.cpu) / min(ours.cpu),
    }


def _print(record: dict[str, Any]) -> None:
    print(f"{record['model']}, batch {record['batch']}, {record['threads']} threads")
    for row in record["sides"]:
        memory = f"{row['saved_for_backward_mb_per_image']:.1f} MB/image kept for backward"
        if row["peak_mb_per_image"] is not None:
            memory += f", peak {row['peak_mb_per_image']:.1f}"
        print(
            f"  {row['side']:>10}: {row['images_per_s']:.2f} images/s (median {row['images_per_s_median']:.2f}), "
            f"MFU {row['mfu']:.0%}, {memory}, loss {row['first_loss']:.6f} "
            f"(differs by {row['loss_difference']:.1e}{', VOID' if row['void'] else ''})"
        )
    for ratio in record["ratios"]:
        print(
            f"  {ratio['ours']} / {ratio['other']}: {ratio['wall_min']:.2f}x by the fastest round, "
            f"{ratio['wall_median']:.2f}x by the median, {ratio['cpu_min']:.2f}x by CPU time"
        )


if __name__ == "__main__":
    raise SystemExit(main())
