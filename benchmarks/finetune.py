"""Our fine-tuning step against timm's own, interleaved in one process: `python benchmarks/finetune.py`.

A step is mixing (mixup and cutmix), forward, soft cross-entropy, backward and AdamW with layer-wise rates, in fp32 from
uint8 images that are there already: augmentation and decoding are off the clock on both sides. "timm" is
timm.create_model, its Mixup, SoftTargetCrossEntropy, param_groups_layer_decay and torch's default AdamW; its images
are normalised on the clock, as its prefetcher does on the device. "timm fused" is the same with torch's fused AdamW,
since which optimizer is taken is no merit of a model's code. "ours" is Lacuna's encoder, objective, mixing and fused
AdamW. All pool by the norm of the mean; they draw other mixes, so losses are printed and not compared. Times are of
rounds in which every side takes its turn: minimum and median of wall clock and of CPU time. Ratios are of medians;
`load` is the machine's load average before and after, for a machine that does other work as well.

Writes benchmarks/results/finetune-DEVICE.json."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import machine, versions, wait  # noqa: E402
from masking.mask import Grid, Mask  # noqa: E402
from masking.rng import generator  # noqa: E402
from pretrain.backbones.vit import ViTConfig  # noqa: E402
from pretrain.engine.optim import build_optimizer, set_rate  # noqa: E402
from pretrain.engine.settings import OptimConfig  # noqa: E402
from pretrain.mixing import MixedBatches, Mixing  # noqa: E402
from pretrain.model import PretrainModel  # noqa: E402
from pretrain.objectives.supervised import SupervisedConfig  # noqa: E402
from pretrain.timm_shim import import_timm  # noqa: E402
from pretrain.types import Batch  # noqa: E402

MEAN, STD, CLASSES, DECAY, SMOOTHING = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1000, 0.65, 0.1
Step = Callable[[int], Tensor]


def main() -> None:
    """Measures, prints and writes."""
    options = _options()
    torch.set_num_threads(options.threads)
    device, size = torch.device(options.device), (options.batch, 3, options.size, options.size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator(0, "images")).to(device)
    labels = torch.randint(0, CLASSES, (options.batch,), generator=generator(0, "labels"))
    sides = {
        "timm": _timm(options, images, labels.to(device), fused=None),
        "timm fused": _timm(options, images, labels.to(device), fused=True),
        "ours": _ours(options, images, labels),
    }
    load = [os.getloadavg()[0]]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    first = {name: step(0).item() for name, step in sides.items()}
    for number in range(1, options.rounds + 1):
        for name, step in sides.items():
            times[name].append(_time(step, number, device))
    rows = {name: _row(options.batch, taken) | {"first_loss": first[name]} for name, taken in times.items()}
    for name, row in rows.items():
        print(name, {key: round(value, 3) for key, value in row.items()})
    load.append(os.getloadavg()[0])
    ratios = {name: {key: rows[name][key] / rows["ours"][key] for key in ("wall_median_s", "cpu_median_s")}
              for name in ("timm", "timm fused")}  # fmt: skip
    for name, found in ratios.items():
        print(f"ours / {name} in images/s:", {key: round(value, 3) for key, value in found.items()})
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/finetune.py", *sys.argv[1:]]), "date": date.today().isoformat(),
        "machine": machine(options.device), "versions": versions(), "load": load, "sides": rows, "ours_over": ratios,
    }  # fmt: skip
    path = ROOT / "benchmarks" / "results" / f"finetune-{device.type}.json"
    if not options.no_write:
        path.write_text(json.dumps(result, indent=1) + "\n")


def _ours(options: argparse.Namespace, images: Tensor, labels: Tensor) -> Step:
    torch.manual_seed(0)
    side, device = options.size // 16, images.device
    backbone = ViTConfig(options.model, positions="learned").build(Grid(side, side), 3, MEAN, STD)
    config = SupervisedConfig(CLASSES, SMOOTHING, "norm_of_mean", 2e-5)
    model = PretrainModel(backbone, config.build(backbone)).to(device).train()
    optimizer = build_optimizer(model, OptimConfig(betas=(0.9, 0.999), layer_decay=DECAY))
    rows, mask = torch.arange(options.batch), Mask.of_nothing(options.batch, Grid(side, side), device)
    batch = Batch(images, labels, torch.ones(options.batch), rows, 0)
    mixing = Mixing(0.8, 1.0, 1.0, 0.5)

    def step(number: int) -> Tensor:
        mixed, targets = MixedBatches([batch], mixing, 0, number, 0, 1, device).at(0)
        losses, _ = model(mixed, mask, model.objective.target(mixed, targets))
        loss = losses["class"].mean()
        optimizer.zero_grad()
        loss.backward()
        set_rate(optimizer, 1e-4)
        optimizer.step()
        return loss.detach()

    return step


def _timm(options: argparse.Namespace, images: Tensor, labels: Tensor, *, fused: bool | None) -> Step:
    timm = import_timm()
    from timm.data.mixup import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import param_groups_layer_decay

    torch.manual_seed(0)
    name = f"vit_{options.model}_patch16_224"
    model = timm.create_model(name, img_size=options.size, num_classes=CLASSES, global_pool="avg")
    model = model.to(images.device).train()
    groups = param_groups_layer_decay(model, 0.05, layer_decay=DECAY)
    for group in groups:
        group["lr"] = 1e-4 * group["lr_scale"]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=fused)
    mixup = Mixup(0.8, 1.0, label_smoothing=SMOOTHING, num_classes=CLASSES)
    criterion = SoftTargetCrossEntropy()
    mean, std = (torch.tensor(v, device=images.device).mul(255)[:, None, None] for v in (MEAN, STD))

    def step(number: int) -> Tensor:
        mixed, targets = mixup((images.float() - mean) / std, labels)
        loss = criterion(model(mixed), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        detached: Tensor = loss.detach()
        return detached

    return step


def _time(step: Step, number: int, device: torch.device) -> tuple[float, float]:
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step(number)
    wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _row(batch: int, taken: list[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = zip(*taken, strict=True)
    row = {f"{kind}_{word}_s": of(values) for kind, values in (("wall", wall), ("cpu", cpu))
           for word, of in (("min", min), ("median", statistics.median))}  # fmt: skip
    return row | {"images_per_s": batch / row["wall_median_s"]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=["tiny", "small", "base", "large"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="images a step, even")
    parser.add_argument("--size", type=int, default=224, help="side of an image, pixels")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--no-write", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
