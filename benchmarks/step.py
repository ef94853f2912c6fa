"""Our training step against plain MAE, interleaved in one process: `python benchmarks/step.py`.

Sides: "plain fp32" is benchmarks/plain_mae.py with torch's default AdamW; "plain amp" is the same under autocast to bf16
(the default rival on a GPU); "ours fp32" and "ours bf16" are Lacuna's encoder and objective with fused AdamW, bf16 with
fp32 master weights as DeepSpeed keeps them. A step is mask, forward, backward and update. All sides start from the same
weights and see the same images and masks; a ratio is void unless their first losses agree. Times are of rounds in which
every side takes its turn: minimum and median, wall clock and (other work on the machine aside) CPU time of the process.

Writes benchmarks/results/step-DEVICE.json. The CPU's default is ViT-B, batch 8, one thread: about two minutes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from plain_mae import PlainMAE  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from masking.draw import Rows, draw  # noqa: E402
from masking.mask import Grid  # noqa: E402
from masking.rng import generator  # noqa: E402
from masking.strategies.uniform import Uniform  # noqa: E402
from pretrain.backbones.vit import ViTConfig  # noqa: E402
from pretrain.config import Config  # noqa: E402
from pretrain.data.settings import DataConfig  # noqa: E402
from pretrain.flops import peak_flops, train_flops_per_image  # noqa: E402
from pretrain.objectives.pixel import PixelMAEConfig  # noqa: E402

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3, "amp": 5e-3}  # of the first loss, relative to plain fp32's
GRID, VISIBLE = Grid(14, 14), 49


@dataclass
class Side:
    """One of the things compared."""

    name: str
    dtype: str  # fp32, bf16 or amp
    step: Callable[[int], Tensor]  # number of the step -> loss
    model: nn.Module
    losses: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mb: float | None = None  # of device memory above what all sides hold at rest, an image
    saved_mb: float = 0.0  # kept for backward, an image


class Masters:
    """fp32 copies of bf16 parameters, updated by fused AdamW and rounded back."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.masters = [nn.Parameter(parameter.detach().float()) for parameter in parameters]
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.optimizer = _adamw(self.masters)

    def step(self) -> None:
        """One update from the parameters' gradients."""
        with torch.no_grad():
            torch._foreach_copy_([master.grad for master in self.masters], [p.grad for p in self.parameters])
            self.optimizer.step()
            torch._foreach_copy_(self.parameters, self.masters)


def plain_side(options: argparse.Namespace, images: Tensor, state: dict[str, Tensor], amp: bool) -> Side:
    """benchmarks/plain_mae.py with torch's default AdamW."""
    config, objective = ViTConfig(options.model), PixelMAEConfig()
    decoder = (objective.decoder_width, objective.decoder_depth, objective.decoder_heads)
    data = DataConfig(train="")
    with torch.device(options.device):
        model = PlainMAE(16, GRID.num_patches, config.dimensions(), decoder, data.mean, data.std)
    model.load_state_dict(state)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05)

    def step(number: int) -> Tensor:
        noise = torch.rand(
            len(images), GRID.num_patches, generator=generator(0, "mask", number, device=images.device), device=images.device
        )
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            loss = model(images, noise, VISIBLE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    dtype = "amp" if amp else "fp32"
    return Side(f"plain {dtype}", dtype, step, model)


def our_side(options: argparse.Namespace, images: Tensor, state: dict[str, Tensor], dtype: torch.dtype) -> Side:
    """Lacuna's encoder and objective, and fused AdamW."""
    model = _ours(options.model).to(options.device)
    model.load_state_dict({**model.state_dict(), **state}, strict=False)
    model.to(dtype)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Masters(parameters) if dtype == torch.bfloat16 else _adamw(parameters)
    rows = Rows(len(images), torch.arange(len(images)))
    forward: Any = model["objective"]
    if options.compile:
        forward = torch.compile(forward)

    def step(number: int) -> Tensor:
        mask = draw(Uniform(), GRID, rows, 0, number, device=images.device)
        losses, _ = forward(model["backbone"], images, mask, None)
        loss = losses["pixel"].mean()
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        optimizer.step()
        return loss.detach()

    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return Side(f"ours {name}", name, step, model)


def main() -> None:
    """Measures, prints and writes."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.batch, 3, 224, 224), dtype=torch.uint8, generator=generator(0, "images"))
    images = images.to(options.device)
    sides = _sides(options, images)
    for side in sides:
        _prepare(side, images)
    for number in range(1, options.rounds + 1):
        for side in sides:
            _time(side, number, options.steps, images.device)
    peaks = {name: _peak(images.device, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    flops = train_flops_per_image(
        Config("step", DataConfig("embedded"), ViTConfig(options.model), PixelMAEConfig(), Uniform(), steps=1)
    )
    record = _record(options, sides, flops, peaks)
    _print(record)
    if not options.no_write:
        path = Path(options.out or ROOT / "benchmarks" / "results" / f"step-{images.device.type}.json")
        path.write_text(json.dumps(record, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", choices=["tiny", "small", "base", "large", "huge"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images a step (default 8 on a CPU, 64 on a GPU)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--rounds", type=int, help="turns of every side (default 5 on a CPU, 10 on a GPU)")
    parser.add_argument("--steps", type=int, help="steps in a turn (default 1 on a CPU, 10 on a GPU)")
    parser.add_argument("--amp", action="store_true", help="plain MAE under autocast too (always on a GPU)")
    parser.add_argument("--compile", action="store_true", help="torch.compile our side")
    parser.add_argument("--out", help="where to write instead of benchmarks/results")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    gpu = options.device != "cpu"
    options.batch = options.batch or (64 if gpu else 8)
    options.rounds = options.rounds or (10 if gpu else 5)
    options.steps = options.steps or (10 if gpu else 1)
    options.amp |= gpu
    return options


def _sides(options: argparse.Namespace, images: Tensor) -> list[Side]:
    source = _ours(options.model)
    state = {name.removeprefix("objective."): value for name, value in source.state_dict().items()}
    state["decoder.pos_embed"] = source["objective"].decoder.pos_embed
    ours = dict(source.state_dict())
    del source
    sides = [plain_side(options, images, state, amp=False)]
    if options.amp:
        sides.append(plain_side(options, images, state, amp=True))
    sides += [our_side(options, images, ours, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return sides


def _ours(size: str) -> nn.ModuleDict:
    torch.manual_seed(1)
    data = DataConfig(train="")
    backbone = ViTConfig(size).build(GRID, 3, data.mean, data.std)  # type: ignore[arg-type]
    return nn.ModuleDict({"backbone": backbone, "objective": PixelMAEConfig().build(backbone)})


def _adamw(parameters: list[Any]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


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
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for offset in range(steps):
        loss = side.step(number * steps + offset)
    _wait(device)
    side.wall.append((time.perf_counter() - wall) / steps)
    side.cpu.append((time.process_time() - cpu) / steps)
    side.losses.append(loss.item())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the device: from the table where it is there, else the best of a few large matrix products."""
    known = peak_flops(device, "bf16" if dtype == torch.bfloat16 else "fp32")
    if known is not None:
        return known
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def _record(options: argparse.Namespace, sides: list[Side], flops: float, peaks: dict[str, float]) -> dict[str, Any]:
    plain = {side.dtype: side for side in sides if side.name.startswith("plain")}
    rows = []
    for side in sides:
        peak = peaks["fp32" if side.dtype == "fp32" else "bf16"]
        rows.append({
            "side": side.name,
            "images_per_s": options.batch / min(side.wall),
            "images_per_s_median": options.batch / statistics.median(side.wall),
            "images_per_cpu_s": options.batch / min(side.cpu),
            "mfu": flops * options.batch / min(side.wall) / peak,
            "first_loss": side.losses[0],
            "loss_difference": abs(side.losses[0] / plain["fp32"].losses[0] - 1),
            "void": abs(side.losses[0] / plain["fp32"].losses[0] - 1) > TOLERANCE[side.dtype],
            "saved_for_backward_mb_per_image": side.saved_mb,
            "peak_mb_per_image": side.peak_mb,
        })  # fmt: skip
    named = {side.name: side for side in sides}
    pairs = [("ours bf16", "plain fp32"), ("ours fp32", "plain fp32"), ("ours bf16", "plain amp")]
    ratios = [_ratio(named[ours], named[other]) for ours, other in pairs if other in named]
    cuda = options.device != "cpu"
    return {
        "command": " ".join(["python", "benchmarks/step.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if cuda else _processor(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "model": f"ViT-{options.model}/16 at 224", "batch": options.batch, "threads": options.threads,
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
    print(f"{record['model']}, batch {record['batch']}, {record['threads']} threads, {record['machine']}")
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical cores"


if __name__ == "__main__":
    main()
