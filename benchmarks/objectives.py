"""What an objective costs on a ViT-B/16, in turns with the others: `python benchmarks/objectives.py`.

Each side is the objective and the mask of its config in configs/, on the encoder of the first, with MTO-R added where
the name says so; MaskAlign's teacher, part of its turn, is a frozen ViT-B/16 of ours with random weights, so timm is
not needed. A turn is mask, target, forward and backward of one batch. Every round starts with another side, and a ratio
to another side is that of the medians over the rounds, by the clock and by the CPU time of the process, which a busy
machine disturbs less. Beside it are arithmetic (`pretrain.flops`), what of the images/s that it predicts from the other
side's was reached, and memory: kept for backward, and at the peak of a turn, gradients included and weights not, as the
GPU's allocator has it or, on a CPU, torch's profiler. In a small batch gradients make up most of the peak.

Writes benchmarks/results/objectives-DEVICE.json: about ten minutes on one thread of a CPU."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from benchmarks.machine import machine, versions, wait  # noqa: E402
from masking.rng import generator  # noqa: E402
from pretrain.config import Config, load_config  # noqa: E402
from pretrain.flops import train_flops_per_image  # noqa: E402
from pretrain.model import PretrainModel, build_backbone, build_model, grid_of, num_draws  # noqa: E402
from pretrain.objectives import teachers  # noqa: E402
from pretrain.objectives.teacher_encoders import OwnEncoder  # noqa: E402
from pretrain.step import Recipe, draw_mask, draw_noise  # noqa: E402

_TEACHER = ("objective.teacher.weights=random", "objective.teacher.compile=false")
SIDES: dict[str, tuple[str, tuple[str, ...], str]] = {  # config, settings, and what it is compared with
    "MAE": ("mae_vitb16", (), "MAE"),
    "SimMIM": ("simmim_vitb16", (), "MAE"),
    "MTO-R on MAE": ("mae_vitb16", ("mto.rho0=1",), "MAE"),
    "MTO-R on SimMIM": ("simmim_vitb16", ("mto.rho0=1",), "SimMIM"),
    "MaskAlign": ("maskalign_vitb16", _TEACHER, "MAE"),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Side:
    """One objective on the common encoder."""

    name: str
    config: Config
    model: PretrainModel
    forward: Callable[..., Any]  # the model, or what torch.compile makes of it
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    saved_mb: float = 0.0  # kept for backward, an image
    peak_mb: float = 0.0  # above what is held between turns, without gradients, an image

    def run(self, images: Tensor, number: int) -> None:
        """Mask, target, forward and backward of images (B, C, H, W) uint8."""
        recipe = Recipe(self.config.mask, grid_of(self.config), 0, 1.0, num_draws(self.config))
        rows, target = torch.arange(len(images)), self.model.objective.target(images)
        mask = draw_mask(recipe, rows, number, images, target)
        losses, _ = self.forward(images, mask, target, draw_noise(rows, recipe, number, images.device))
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
    parser.add_argument("--compile", action="store_true", help="as a run on a GPU does by default")
    parser.add_argument("--only", nargs="+", default=list(SIDES), choices=list(SIDES), help="sides (default all)")
    parser.add_argument("--out", type=Path, help="where to write instead of benchmarks/results")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args()
    gpu = options.device != "cpu"
    options.batch, options.rounds = options.batch or (128 if gpu else 8), options.rounds or (30 if gpu else 5)
    torch.set_num_threads(options.threads)
    result = {
        "command": " ".join(["python", "benchmarks/objectives.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(options.device),
        "versions": versions(),
        "compiled": options.compile,
        "runs": [measure(options, precision) for precision in options.precision],
    }
    if not options.no_write:
        path = options.out or ROOT / "benchmarks" / "results" / f"objectives-{'gpu' if gpu else 'cpu'}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """All sides in one precision: printed, and returned as data."""
    images = torch.randint(0, 256, (options.batch, 3, 224, 224), dtype=torch.uint8, generator=generator(0, "images"))
    images = images.to(options.device)
    sides = _sides(options, DTYPES[precision])
    for side in sides:
        _warm_up(side, images)
    for number in range(1, options.rounds + 1):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            _time(side, images, number)
    record = {"precision": precision, "batch": options.batch, "threads": options.threads, "rounds": options.rounds}
    named = {side.name: side for side in sides}
    others = [named.get(SIDES[side.name][2], sides[0]) for side in sides]
    record["sides"] = [_row(*pair, options.batch, images.is_cuda) for pair in zip(sides, others, strict=True)]
    print(f"ViT-B/16 at 224, batch {options.batch}, {precision}, {options.threads} threads, {options.rounds} rounds")
    for row in record["sides"]:
        memory = f"{row['saved_for_backward_mb_per_image']:.0f} MB kept and {row['peak_mb_per_image']:.0f} at the peak"
        print(
            f"  {row['side']:>15}: {row['images_per_s']:.2f} images/s, {row['gflop_per_image']:.1f} GFLOP, {memory} an "
            f"image; against {row['against']}: time {row['wall_ratio']:.3f}, CPU time {row['cpu_ratio']:.3f}, "
            f"arithmetic {row['flop_ratio']:.3f} (reached {row['share_of_predicted']:.3f}), kept "
            f"{row['saved_ratio']:.3f}, peak {row['memory_ratio']:.3f}", flush=True,
        )  # fmt: skip
    return record


def _sides(options: argparse.Namespace, dtype: torch.dtype) -> list[Side]:
    found = []
    for name in options.only:
        file, settings, _ = SIDES[name]
        config = load_config(ROOT / "configs" / f"{file}.py", settings)
        config = dataclasses.replace(config, backbone=load_config(ROOT / "configs" / "mae_vitb16.py").backbone)
        # As costly as the config's, which is timm's: the same ViT-B/16, and only its shape counts here.
        teachers.open_teacher = lambda *_, config=config: OwnEncoder(build_backbone(config))
        model = build_model(config).to(options.device, dtype)
        model.at_step(1, 2, 1.0)  # half-way: MTO-R's losses have their full weights
        forward = torch.compile(model) if options.compile else model
        found.append(Side(name, config, model, forward))
    return found


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
    for parameter in side.model.parameters():
        parameter.grad = None
    side.peak_mb = (_peak_cuda if images.is_cuda else _peak_cpu)(lambda: side.run(images, 0)) / len(images) / 1e6


def _peak_cuda(run: Callable[[], None]) -> int:
    """Bytes that run holds at most, above what is held before it."""
    rest = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - rest


def _peak_cpu(run: Callable[[], None]) -> int:
    """The same, from every allocation and release of a tensor's memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes, initial=0))


def _time(side: Side, images: Tensor, number: int) -> None:
    wait(images.device)
    wall, cpu = time.perf_counter(), time.process_time()
    side.run(images, number)
    wait(images.device)
    side.wall.append(time.perf_counter() - wall)
    side.cpu.append(time.process_time() - cpu)


def _row(side: Side, other: Side, batch: int, on_gpu: bool) -> dict[str, Any]:
    flops = train_flops_per_image(side.config)
    flop_ratio = flops / train_flops_per_image(other.config)
    wall, cpu = (statistics.median(mine) / statistics.median(theirs)
                 for mine, theirs in ((side.wall, other.wall), (side.cpu, other.cpu)))  # fmt: skip
    return {
        "side": side.name,
        "config": f"configs/{SIDES[side.name][0]}.py",
        "settings": list(SIDES[side.name][1]),
        "against": other.name,
        "images_per_s": batch / statistics.median(side.wall),
        "gflop_per_image": flops / 1e9,
        "saved_for_backward_mb_per_image": side.saved_mb,
        "peak_mb_per_image": side.peak_mb,
        "wall_ratio": wall,
        "cpu_ratio": cpu,
        "flop_ratio": flop_ratio,
        "share_of_predicted": flop_ratio / (wall if on_gpu else cpu),
        "saved_ratio": side.saved_mb / other.saved_mb,
        "memory_ratio": side.peak_mb / other.peak_mb,
        "wall_s": side.wall,
        "cpu_s": side.cpu,
    }


if __name__ == "__main__":
    raise SystemExit(main())
