"""Forward and backward of iLLaMA against the eager formulation, in turns: `python benchmarks/illama_step.py`.

"eager" is benchmarks/sides/eager_illama.py: the mask built in every forward, softmax and mask in memory, positions as
complex numbers in fp32, the norm operation by operation. "ours" is Lacuna's encoder. Both hold the same weights in the
same precision (bf16: weights too) and see the same images. "supervised" takes all 196 patches and the class token, and
its loss is the squared distance of the class token's features from fixed random ones; "mae" takes a quarter of them,
and its eager side is benchmarks/sides/plain.py with that encoder: our decoder also computes less.

A ratio is that of the medians over the rounds, by CPU time of the process and by the clock. It is void where the first
losses differ, or the gradients of all weights together. Beside it are the arithmetic as torch counts it and the bytes
kept for backward, each storage once and weights not.

Writes benchmarks/results/illama-step-DEVICE.json: about eight minutes on one thread of a CPU."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils import flop_counter  # noqa: E402

from benchmarks.machine import machine, versions, wait  # noqa: E402
from benchmarks.sides.illama import CASES, Side, sides  # noqa: E402
from masking.mask import Grid  # noqa: E402
from masking.rng import generator  # noqa: E402
from pretrain.backbones.illama import IllamaConfig  # noqa: E402
from pretrain.objectives.pixel import PixelMAEConfig  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}  # relative
GRADIENT_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # norm of the difference, relative
GOALS = {"cpu": 1.15, "cuda": 2.2}
_ATEN = torch.ops.aten
UNCOUNTED = {  # what torch's counter does not know
    _ATEN.baddbmm_: lambda total, a, b, *_, **__: 2 * math.prod(a) * b[-1],
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q, k, v),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        flop_counter.sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def main() -> int:
    """Measures, prints and writes; 1 where the sides do not compute the same."""
    options = _options()
    torch.set_num_threads(options.threads)
    cuda = options.device != "cpu"
    result = {
        "command": " ".join(["python", "benchmarks/illama_step.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(options.device),
        "versions": versions(),
        "model": f"iLLaMA-{options.model}/16 at 224",
        "batch": options.batch, "threads": options.threads, "rounds": options.rounds,
        "steps_per_round": options.steps, "compiled": options.compile, "goal": GOALS["cuda" if cuda else "cpu"],
        "runs": [row for precision, case in product(options.precision, options.case)
                 for row in measure(options, precision, case)],
    }  # fmt: skip
    if not options.no_write:
        path = Path(options.out or ROOT / "benchmarks" / "results" / f"illama-step-{'cuda' if cuda else 'cpu'}.json")
        path.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row["void"] for row in result["runs"]))


def measure(options: argparse.Namespace, precision: str, case: str) -> list[dict[str, Any]]:
    """Both sides in one precision and case, a record for every alpha."""
    images = torch.randint(0, 256, (options.batch, 3, 224, 224), dtype=torch.uint8, generator=generator(0, "images"))
    images = images.to(options.device)
    eager, ours = sides(case, IllamaConfig(options.model), Grid(14, 14), PixelMAEConfig(), images, DTYPES[precision])
    for side in (eager, ours):
        if options.compile in (side.name, "both"):
            side.compiled = torch.compile(side.loss)
    rows = []
    for alpha in options.alpha:
        rows.append({"precision": precision, "case": case, "alpha": alpha})
        rows[-1] |= _compare(options, precision, alpha, eager, ours, images)
        _print(rows[-1])
    return rows


def _compare(
    options: argparse.Namespace, precision: str, alpha: float, eager: Side, ours: Side, images: Tensor
) -> dict[str, Any]:
    first, gradients, record = {}, {}, {}
    for side in (eager, ours):
        side.set_alpha(alpha)
        side.wall.clear()
        side.cpu.clear()
        saved, flops = _counted(side, images)
        first[side.name] = side.step(0).item()
        gradients[side.name] = _gradients(side)
        record[side.name] = {"first_loss": first[side.name], "saved_for_backward_mb_per_image": saved}
        record[side.name]["gflop_per_image"] = flops
    loss = abs(first["ours"] / first["eager"] - 1)
    gradient, worst = _apart(gradients["ours"], gradients["eager"])
    del gradients
    void = not (loss <= LOSS_TOLERANCE[precision] and gradient <= GRADIENT_TOLERANCE[precision])
    for number in range(1, options.rounds + 1):
        for side in (eager, ours) if number % 2 else (ours, eager):
            _time(side, number, options.steps, images)
    for side in (eager, ours):
        for name, times in (("wall", side.wall), ("cpu", side.cpu)):
            record[side.name] |= {f"{name}_s_median": statistics.median(times), f"{name}_s_min": min(times)}
    ratios = {f"{name}_ratio_{which}": record["eager"][f"{name}_s_{which}"] / record["ours"][f"{name}_s_{which}"]
              for name, which in product(("cpu", "wall"), ("median", "min"))}  # fmt: skip
    return {**record, **ratios, "loss_difference": loss, "gradient_difference": gradient, "worst_gradients": worst,
            "void": void}  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", choices=["tiny", "small", "base", "large"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images a step (default 4 on a CPU, 64 on a GPU)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--rounds", type=int, help="turns of a side (default 6 on a CPU, 20 on a GPU)")
    parser.add_argument("--steps", type=int, help="steps in a turn (default 1 on a CPU, 5 on a GPU)")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.37, 1.0])
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--compile", default="none", choices=["none", "ours", "both"], help="what torch.compile gets; "
                        "Lacuna compiles on a GPU unless told not to, the published code does not")  # fmt: skip
    parser.add_argument("--precision", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--out", help="where to write instead of benchmarks/results")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    gpu = options.device != "cpu"
    options.batch, options.rounds = options.batch or (64 if gpu else 4), options.rounds or (20 if gpu else 6)
    options.steps = options.steps or (5 if gpu else 1)
    return options


def _counted(side: Side, images: Tensor) -> tuple[float, float | None]:
    """Of step 0, not compiled: MB an image that it keeps for backward, and GFLOP an image as torch counts matrix
    products; None on a GPU, whose kernels of ours it does not know."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in side.model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        side.step(0, eager=True)
    flops = None if images.is_cuda else counter.get_total_flops() / len(images) / 1e9
    return sum(saved.values()) / len(images) / 1e6, flops


def _gradients(side: Side) -> dict[str, Tensor]:
    """All of the last step, by the weights' names, which are alike but for a prefix."""
    named = {name.removeprefix("objective."): p.grad for name, p in side.model.named_parameters()}
    return {name: grad.float() for name, grad in sorted(named.items()) if grad is not None}


def _apart(ours: dict[str, Tensor], eager: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    """The norm of the difference of all gradients over that of eager's; and the same of the three weights in which it
    is largest."""
    each = {name: (ours[name] - eager[name]).norm().item() for name in ours.keys() | eager.keys()}
    norms = {name: grad.norm().item() for name, grad in eager.items()}
    ranked = sorted(each, key=lambda name: each[name] / max(norms[name], 1e-12), reverse=True)
    return math.hypot(*each.values()) / math.hypot(*norms.values()), {
        name: each[name] / max(norms[name], 1e-12) for name in ranked[:3]
    }


def _time(side: Side, number: int, steps: int, images: Tensor) -> None:
    wait(images.device)
    wall, cpu = time.perf_counter(), time.process_time()
    for offset in range(steps):
        side.step(number * steps + offset)
    wait(images.device)
    side.wall.append((time.perf_counter() - wall) / steps)
    side.cpu.append((time.process_time() - cpu) / steps)


def _print(row: dict[str, Any]) -> None:
    eager, ours = row["eager"], row["ours"]
    kept = " against ".join(f"{side['saved_for_backward_mb_per_image']:.0f}" for side in (ours, eager))
    counted = " against ".join(f"{side['gflop_per_image'] or float('nan'):.1f}" for side in (ours, eager))
    print(
        f"{row['precision']} {row['case']:>10} alpha {row['alpha']}: {row['cpu_ratio_median']:.3f}x by CPU time, "
        f"{row['wall_ratio_median']:.3f}x by the clock ({ours['cpu_s_median']:.3f} s against "
        f"{eager['cpu_s_median']:.3f}), {kept} MB/image kept, {counted} GFLOP/image, loss {ours['first_loss']:.6f} "
        f"differs by {row['loss_difference']:.1e}, gradients by {row['gradient_difference']:.1e}"
        f"{', VOID' if row['void'] else ''}", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
