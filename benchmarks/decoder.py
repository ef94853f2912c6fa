"""What the decoder's weights cost: ViT-B MAE forward and backward at decoder_weights 1, 0.5 and 0, interleaved in one
process: `python benchmarks/decoder.py`.

Sides differ in objective.decoder_weights alone: same weights, images and masks. A turn is forward and backward of one
batch, without an update; every round gives each side its turn, the order reversed from round to round, and a ratio is
the median over rounds of 1's time over the other's in the same round, by wall clock and by the CPU time of the process,
which other load on the machine disturbs less. FLOPs are of forward and backward, as
pretrain/flops.py counts them.

Writes benchmarks/results/decoder-DEVICE.json; on a CPU two minutes on one thread."""

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
from torch import Tensor, nn  # noqa: E402

from benchmarks.machine import machine, versions, wait  # noqa: E402
from masking.mask import Grid, Mask  # noqa: E402
from masking.rng import generator  # noqa: E402
from masking.strategies.uniform import Uniform  # noqa: E402
from pretrain.backbones.vit import ViTConfig  # noqa: E402
from pretrain.config import Config  # noqa: E402
from pretrain.data.settings import DataConfig  # noqa: E402
from pretrain.flops import train_flops_per_image  # noqa: E402
from pretrain.objectives.pixel import PixelMAEConfig  # noqa: E402

WEIGHTS = (1.0, 0.5, 0.0)
GRID, VISIBLE = Grid(14, 14), 49


class Side:
    """One model and its times."""

    def __init__(self, weight: float, dtype: torch.dtype, device: str) -> None:
        self.weight = weight
        torch.manual_seed(0)
        self.backbone = ViTConfig("base").build(GRID, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.objective = _objective(weight).build(self.backbone)
        self.parts: nn.ModuleList = nn.ModuleList([self.backbone, self.objective]).to(device, dtype)
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def turn(self, images: Tensor, mask: Mask) -> None:
        """Forward and backward, timed."""
        wait(images.device)
        wall, cpu = time.perf_counter(), time.process_time()
        losses, _ = self.objective(self.backbone, images, mask, self.objective.target(images))
        losses["pixel"].mean().backward()
        wait(images.device)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        self.parts.zero_grad()


def main() -> None:
    """Measures, prints and writes."""
    options = _options()
    torch.set_num_threads(options.threads)
    runs = [measure(options, dtype) for dtype in options.precision]
    cuda = options.device != "cpu"
    result = {
        "command": " ".join(["python", "benchmarks/decoder.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(options.device),
        "versions": versions(),
        "runs": runs,
    }
    if not options.no_write:
        path = Path(options.out or ROOT / "benchmarks" / "results" / f"decoder-{'cuda' if cuda else 'cpu'}.json")
        path.write_text(json.dumps(result, indent=1) + "\n")


def measure(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """All weights at one precision: printed, and returned as data."""
    shape = (options.batch, 3, 224, 224)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "images")).to(options.device)
    sides = [Side(weight, getattr(torch, precision), options.device) for weight in WEIGHTS]
    for number in range(options.rounds + 1):
        scores = torch.rand(options.batch, GRID.num_patches, generator=generator(0, "mask", number))
        mask = Mask.cut(scores.to(options.device), VISIBLE)
        for side in sides if number % 2 else reversed(sides):
            side.turn(images, mask)
    rows = [_row(side, sides[0], options.batch) for side in sides]
    _print(precision, options.batch, rows)
    return {"model": "ViT-base/16 at 224, decoder 8 x 512", "precision": precision, "batch": options.batch,
            "threads": options.threads, "rounds": options.rounds, "weights": rows}  # fmt: skip


def _row(side: Side, base: Side, batch: int) -> dict[str, Any]:
    return {
        "decoder_weight": side.weight,
        "ms_per_image_median": 1e3 * statistics.median(side.wall[1:]) / batch,  # the first round warms up
        "cpu_ms_per_image_median": 1e3 * statistics.median(side.cpu[1:]) / batch,
        "wall_ratio_to_1": _ratio(base.wall, side.wall),
        "cpu_ratio_to_1": _ratio(base.cpu, side.cpu),
        "gflop_per_image": _flops(side.weight) / 1e9,
        "flop_ratio_to_1": _flops(1.0) / _flops(side.weight),
    }


def _ratio(base: list[float], times: list[float]) -> dict[str, float]:
    """How many times as fast as base, over the rounds after the first."""
    ratios = [one / other for one, other in zip(base[1:], times[1:], strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def _flops(weight: float) -> float:
    config = Config("decoder", DataConfig("embedded"), ViTConfig("base"), _objective(weight), Uniform(), steps=1)
    return train_flops_per_image(config)


def _objective(weight: float) -> PixelMAEConfig:
    return PixelMAEConfig(decoder_weights=(weight,))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images a turn (default 4 on a CPU, 128 on a GPU)")
    parser.add_argument("--rounds", type=int, help="turns of every side (default 8 on a CPU, 30 on a GPU)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--out", help="where to write instead of benchmarks/results")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    gpu = options.device != "cpu"
    options.batch = options.batch or (128 if gpu else 4)
    options.rounds = options.rounds or (30 if gpu else 8)
    return options


def _print(precision: str, batch: int, rows: list[dict[str, Any]]) -> None:
    print(f"ViT-B MAE, {precision}, batch {batch}")
    for row in rows:
        wall, cpu = row["wall_ratio_to_1"], row["cpu_ratio_to_1"]
        print(
            f"  weight {row['decoder_weight']:g}: {row['ms_per_image_median']:.1f} ms an image, by wall clock "
            f"{wall['median']:.3f}x as fast as 1 ({wall['low']:.3f} to {wall['high']:.3f}), by CPU time "
            f"{cpu['median']:.3f}x ({cpu['low']:.3f} to {cpu['high']:.3f}), by FLOPs {row['flop_ratio_to_1']:.3f}x"
        )


if __name__ == "__main__":
    main()
