"""What an objective costs on a ViT-B/16, in turns with the others: `python benchmarks/objectives.py`.

Each side is the objective and the hidden share of its config in configs/, on the encoder of the first; a turn is mask,
forward and backward of one batch. Every round starts with another side, and a ratio is that of the medians over the
rounds, by the clock and by the CPU time of the process, which a busy machine disturbs less. Beside it are arithmetic
(`pretrain.flops`) and memory kept for backward.

Writes benchmarks/results/objectives-DEVICE.json: about three minutes on one thread of a CPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from masking.mask import Mask  # noqa: E402
from masking.rng import generator  # noqa: E402
from pretrain.config import Config, load_config  # noqa: E402
from pretrain.flops import train_flops_per_image  # noqa: E402
from pretrain.model import PretrainModel, build_model, grid_of  # noqa: E402

CONFIGS = {"MAE": "mae_vitb16", "SimMIM": "simmim_vitb16"}  # the first is what the others are compared with
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Side:
    """One objective on the common encoder."""

    name: str
    config: Config
    model: PretrainModel
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    saved_mb: float = 0.0  # kept for backward, an image

    def run(self, images: Tensor, number: int) -> None:
        """Mask, forward and backward of images (B, C, H, W) uint8."""
        grid, rng = grid_of(self.config), generator(0, "mask", number, device=images.device)
        scores = torch.rand(len(images), grid.num_patches, generator=rng, device=images.device)
        mask = Mask.cut(scores, self.config.mask.ratio.num_visible(grid, generator(0, "ratio")))
        losses, _ = self.model(images, mask, self.model.objective.target(images))
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.stack([values.mean() for values in losses.values()]).sum().backward()


def main() -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=None, help="images (default 8 on a CPU, 128 on a GPU)")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--rounds", type=int, default=None, help="turns of a side (default 5 on a CPU, 30 on a GPU)")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args()
    gpu = options.device != "cpu"
    options.batch, options.rounds = options.batch or (128 if gpu else 8), options.rounds or (30 if gpu else 5)
    torch.set_num_threads(options.threads)
    result = {
        "command": " ".join(["python", "benchmarks/objectives.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if gpu else _processor(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "runs": [measure(options, precision) for precision in options.precision],
    }
    if not options.no_write:
        path = ROOT / "benchmarks" / "results" / f"objectives-{'cuda' if gpu else 'cpu'}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """All sides in one precision: printed, and returned as data."""
    images = torch.randint(0, 256, (options.batch, 3, 224, 224), dtype=torch.uint8, generator=generator(0, "images"))
    images = images.to(options.device)
    sides = _sides(options.device, DTYPES[precision])
    for side in sides:
        _warm_up(side, images)
    for number in range(1, options.rounds + 1):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            _time(side, images, number)
    record = {"precision": precision, "batch": options.batch, "threads": options.threads, "rounds": options.rounds}
    record["sides"] = [_row(side, sides[0], options.batch) for side in sides]
    print(f"ViT-B/16 at 224, batch {options.batch}, {precision}, {options.threads} threads, {options.rounds} rounds")
    for row in record["sides"]:
        print(
            f"  {row['side']:>8}: {row['images_per_s']:.2f} images/s, {row['gflop_per_image']:.1f} GFLOP and "
            f"{row['saved_for_backward_mb_per_image']:.0f} MB an image; against {sides[0].name}: time "
            f"{row['wall_ratio']:.2f}, CPU time {row['cpu_ratio']:.2f}, arithmetic {row['flop_ratio']:.2f}"
        )
    return record


def _sides(device: str, dtype: torch.dtype) -> list[Side]:
    configs = {name: load_config(ROOT / "configs" / f"{file}.py") for name, file in CONFIGS.items()}
    encoder = next(iter(configs.values())).backbone
    configs = {name: dataclasses.replace(config, backbone=encoder) for name, config in configs.items()}
    return [Side(name, config, build_model(config).to(device, dtype)) for name, config in configs.items()]


def _warm_up(side: Side, images: Tensor) -> None:
    """Runs once, counting what is kept for backward: every storage once, weights not."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in side.model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        side.run(images, 0)
    side.saved_mb = sum(saved.values()) / len(images) / 1e6


def _time(side: Side, images: Tensor, number: int) -> None:
    _wait(images)
    wall, cpu = time.perf_counter(), time.process_time()
    side.run(images, number)
    _wait(images)
    side.wall.append(time.perf_counter() - wall)
    side.cpu.append(time.process_time() - cpu)


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


def _row(side: Side, first: Side, batch: int) -> dict[str, Any]:
    flops = train_flops_per_image(side.config)
    return {
        "side": side.name,
        "config": f"configs/{CONFIGS[side.name]}.py",
        "images_per_s": batch / statistics.median(side.wall),
        "gflop_per_image": flops / 1e9,
        "saved_for_backward_mb_per_image": side.saved_mb,
        "wall_ratio": statistics.median(side.wall) / statistics.median(first.wall),
        "cpu_ratio": statistics.median(side.cpu) / statistics.median(first.cpu),
        "flop_ratio": flops / train_flops_per_image(first.config),
        "wall_s": side.wall,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical cores"


if __name__ == "__main__":
    raise SystemExit(main())
