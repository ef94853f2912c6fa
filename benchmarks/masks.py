"""What masks cost: every strategy against uniform masks, and against a training step of ViT-B on the same device.

    python benchmarks/masks.py                    # writes benchmarks/results/masks-DEVICE.json

A batch of 256 masks on 14 x 14 patches, 75 % hidden. Each strategy and uniform masks take turns, one draw each; the
figure is the ratio of their medians. Guidance is given, since it is not the strategy that makes it; the making of
gradient energy is timed on its own. On a CPU an operation has one thread, and the time is that of the processor. Goals:
at most 1.2 times uniform masks, and at most 1 % of a step."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from masking.draw import MaskStrategy, draw  # noqa: E402
from masking.importance import gradient_energy  # noqa: E402
from masking.mask import Grid  # noqa: E402
from masking.planes import SIGMAS, PlaneRecipe, cached_planes  # noqa: E402
from masking.ratio import FixedRatio  # noqa: E402
from masking.strategies import all_strategies  # noqa: E402
from masking.strategies.uniform import Uniform  # noqa: E402
from pretrain.backbones.vit import ViTConfig  # noqa: E402
from pretrain.objectives.pixel import PixelMAEConfig  # noqa: E402
from pretrain.types import Target  # noqa: E402

GRID, BATCH, RATIO = Grid(14, 14), 256, FixedRatio(0.75)
MOST_TIMES_UNIFORM, MOST_OF_A_STEP = 1.2, 0.01


def main() -> int:
    """Measures, prints and writes; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=200, help="draws of each side")
    parser.add_argument("--out", type=Path, help="where to write instead of benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    step_us = step_us_per_image(device)
    rows = compare(device, options.rounds, step_us)
    images = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8, device=device)
    energy = statistics.median(timed(lambda: gradient_energy(images, GRID), device) for _ in range(5)) / BATCH * 1e6
    missed = [row["strategy"] for row in rows
              if row["times_uniform"] > MOST_TIMES_UNIFORM or row["share_of_step"] > MOST_OF_A_STEP]  # fmt: skip
    result = {
        "command": " ".join(["python", "benchmarks/masks.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "vit_b_step_us_per_image": step_us,
        "gradient_energy_us_per_image": energy,
        "gradient_energy_share_of_step": energy / step_us,
        "planes_s": planes(),
        "strategies": rows,
        "missed": missed,
    }
    path = options.out or ROOT / "benchmarks" / "results" / f"masks-{device.type}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"planes: {result['planes_s']}; missed: {missed or 'nothing'}")
    return int(bool(missed))


def compare(device: torch.device, rounds: int, step_us: float) -> list[dict[str, Any]]:
    """Every strategy against uniform masks and the step, printed as it is measured."""
    rows = []
    for kind in all_strategies():
        for name, strategy in kind.variants(RATIO).items():
            ours, uniform = pair(strategy, device, rounds)
            cost, times = ours / BATCH * 1e6, ours / uniform
            share = cost / step_us
            rows.append({"strategy": name, "us_per_image": cost, "times_uniform": times, "share_of_step": share})
            print(f"{name:32s} {cost:7.2f} us  {times:5.2f} x uniform  {100 * share:.4f} % of a step", flush=True)
    return rows


def pair(strategy: MaskStrategy, device: torch.device, rounds: int) -> tuple[float, float]:
    """Median seconds of a draw of strategy, and of uniform masks drawn in turn with it."""
    rows = torch.arange(BATCH)
    guidance = torch.rand(BATCH, GRID.num_patches, device=device)
    given = guidance if strategy.guided_by is not None else None
    uniform = Uniform(RATIO)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 5):
        ours = timed(partial(draw, strategy, GRID, rows, 0, number, given, device=device), device)
        other = timed(partial(draw, uniform, GRID, rows, 0, number, device=device), device)
        if number >= 5:
            times[0].append(ours)
            times[1].append(other)
    return statistics.median(times[0]), statistics.median(times[1])


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of work, to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device.type == "cuda" else time.process_time  # others may be at work on this CPU
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def step_us_per_image(device: torch.device) -> float:
    """Forward and backward of MAE with ViT-B in bf16, microseconds an image."""
    batch = BATCH if device.type == "cuda" else 8
    backbone = ViTConfig("base").build(GRID, 3, (0.5,) * 3, (0.25,) * 3)
    objective = PixelMAEConfig().build(backbone)
    backbone.to(device, torch.bfloat16)
    objective.to(device, torch.bfloat16)
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    mask = draw(Uniform(RATIO), GRID, torch.arange(batch), 0, 0, device=device)

    def step() -> None:
        objective(backbone, images, mask, Target())[0]["pixel"].mean().backward()

    step()
    return statistics.median(timed(step, device) for _ in range(5)) / batch * 1e6


def planes() -> dict[str, float]:
    """Seconds to make the default planes of green noise, and to read them back."""
    recipe = PlaneRecipe("green", SIGMAS["green"], 5, 64, 256, 0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()  # it has threads of its own, so wall clock
        cached_planes(recipe, Path(folder))
        made = time.perf_counter()
        cached_planes(recipe, Path(folder))
        return {"made": made - began, "read": time.perf_counter() - made}


if __name__ == "__main__":
    sys.exit(main())
