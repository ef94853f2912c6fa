"""Tar to batch, images per core-second: ours against a plain webdataset pipeline. `python benchmarks/loader.py`

The plain side is what people write: `.shuffle.decode("pilrgb")`, torchvision's RandomResizedCrop (bicubic), flip,
ToTensor, Normalize, `.batched`. Both run through one worker process of the real loader, in alternating rounds; what is
counted is the CPU time of all processes, which a busy machine disturbs less than the clock. Then: the same images at
four crops per decode; two workers against one, by the clock, in rounds in which nothing else took their cores; the cost
of order and checksum; and how far our pixels are from Pillow's.

Without --shards it makes its own images, 500 x 375 at quality 95, from photographs that scikit-image ships. Ends with 1
when a figure misses its goal; writes benchmarks/results/loader-cpu.json."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import webdataset as wds  # noqa: E402
from isal import isal_zlib  # noqa: E402
from PIL import Image  # noqa: E402

from pretrain.data.augment import _uniforms, crop_key, random_box, resize_box  # noqa: E402
from pretrain.data.decode import decode  # noqa: E402
from pretrain.data.loader import build_loader  # noqa: E402
from pretrain.data.order import Order, rank_positions  # noqa: E402
from pretrain.data.settings import DataConfig  # noqa: E402
from pretrain.data.shards import IMAGE_EXTENSIONS, ShardSet, image_extension, open_shards  # noqa: E402
from pretrain.timm_shim import ensure_torchvision  # noqa: E402

BATCH, SIDE, WARM = 64, 224, 8  # images in a batch, pixels of a crop, batches before the count starts
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
GOALS = {
    "ratio": (">=", 2.8),
    "ratio_4_crops": (">=", 5.5),
    "workers_2_over_1": (">=", 1.8),
    "order_and_crc_share": ("<=", 0.02),
    "pixel_difference": ("<=", 0.1),
}
PACKAGES = ("torch", "torchvision", "webdataset", "pillow", "simplejpeg", "numpy")
CFG = DataConfig(train="benchmark", image_size=(SIDE, SIDE), batch_size=BATCH, workers=1, prefetch=2)


def main() -> int:
    """Prints both sides of every ratio; 0 where all goals are reached."""
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lacuna-loader-") as folder:
        pattern = options.shards or _write_photos(Path(folder), options.images)
        shards = open_shards(pattern)
        kilobytes = sum(Path(name).stat().st_size for name in shards.names) / shards.num_samples / 1e3
        results = measure(shards, options.rounds, options.batches)
    results |= {
        "goals": {name: f"{sign} {value}" for name, (sign, value) in GOALS.items()},
        "data": Path(options.shards).parent.name if options.shards else "500x375, q95, scikit-image",
        "images": shards.num_samples,
        "kilobytes_per_image": round(kilobytes),
        "command": "python benchmarks/loader.py" + (" --shards ..." if options.shards else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
        "versions": {name: version(name) for name in PACKAGES},
    }
    missed = _report(results)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")
    return int(bool(missed))


def measure(shards: ShardSet, rounds: int, batches: int) -> dict[str, Any]:
    """All figures; of CPU time the median over the rounds, and each round."""
    sides: dict[str, Callable[[int], Iterator[Any]]] = {
        "plain": partial(_plain, shards),
        "ours": partial(_ours, shards, 1),
        "ours_4_crops": partial(_ours, shards, 4),
    }
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, side in sides.items():
            cpu[name].append(_rate(side(1), batches)[0])
    middle = {name: statistics.median(rates) for name, rates in cpu.items()}
    parts = _parts(shards)
    clock = {workers: _alone(shards, workers) for workers in (1, 2)}
    return {
        "images_per_core_second": {name: round(rate, 1) for name, rate in middle.items()},
        "ratio": round(middle["ours"] / middle["plain"], 3),
        "ratio_4_crops": round(middle["ours_4_crops"] / middle["plain"], 3),
        "images_per_second_by_workers": clock,
        "workers_2_over_1": round(clock[2] / clock[1], 3) if clock[1] and clock[2] else None,
        "microseconds_per_image": parts,
        "order_and_crc_share": round((parts["order"] + parts["crc"]) / sum(parts.values()), 4),
        "pixel_difference": round(_difference(shards), 4),
        "rounds": {
            "images_per_core_second": {name: [round(rate, 1) for rate in rates] for name, rates in cpu.items()},
        },
    }  # fmt: skip


def _ours(shards: ShardSet, crops: int, workers: int) -> Iterator[Any]:
    cfg = replace(CFG, workers=workers, crops_per_decode=crops)
    loader = build_loader(shards, cfg, 0, rank=0, world=1, accumulation=1, start_step=0, device="cpu")
    with closing(loader):
        yield from loader


def _plain(shards: ShardSet, workers: int) -> Iterator[Any]:
    ensure_torchvision()
    from torchvision import transforms

    transform = transforms.Compose([
        transforms.RandomResizedCrop(SIDE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(CFG.mean, CFG.std),
    ])  # fmt: skip
    dataset = (
        wds.WebDataset(shards.names, shardshuffle=len(shards.names), empty_check=False)
        .shuffle(256)
        .decode("pilrgb")
        .to_tuple("jpg;jpeg;png;webp")
        .map_tuple(transform)
        .batched(BATCH, partial=False)
        .repeat()
    )
    yield from wds.WebLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=2)


def _alone(shards: ShardSet, workers: int, tries: int = 12, wanted: int = 3) -> float | None:
    """Images per second by the clock: the median of rounds in which the workers had their cores, None without any."""
    rates: list[float] = []
    for _ in range(tries):
        by_cpu, by_clock = _rate(_ours(shards, 1, workers), 10 * workers)
        if by_clock / by_cpu > 0.95 * workers:
            rates.append(by_clock)
        if len(rates) == wanted:
            break
    return round(statistics.median(rates), 1) if rates else None


def _rate(batches: Iterator[Any], number: int) -> tuple[float, float]:
    """(images per CPU second of all processes, images per second) over so many batches, once the pipeline is full."""
    for _ in islice(batches, WARM):
        pass
    cpu, clock = _cpu_seconds(), time.perf_counter()
    for _ in islice(batches, number):
        pass
    cpu, clock = _cpu_seconds() - cpu, time.perf_counter() - clock
    batches.close()  # type: ignore[attr-defined]
    return number * BATCH / cpu, number * BATCH / clock


def _cpu_seconds() -> float:
    """CPU time so far of this process and all that descend from it and live, seconds."""
    processes: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        processes[int(path.parent.name)] = (int(fields[1]), int(fields[11]) + int(fields[12]))
    family = {os.getpid()}
    for _ in range(4):  # this process, the fork server, its workers, and one to spare
        family |= {pid for pid, (parent, _) in processes.items() if parent in family}
    return sum(processes[pid][1] for pid in family) / os.sysconf("SC_CLK_TCK")


def _parts(shards: ShardSet) -> dict[str, float]:
    """CPU microseconds per image of: finding positions (Order), reading bytes, their checksums, decoding, cutting."""
    order = Order(shards.lengths, 0, CFG.lanes, CFG.block)
    order.locate(np.arange(BATCH))
    spent = dict.fromkeys(("order", "read", "crc", "decode", "crop_and_resize"), 0.0)
    rounds = 4
    for step in range(1, 1 + rounds):
        marks = [time.process_time()]
        (positions,) = rank_positions(step, BATCH, 0, 1)
        _, of_shards, samples = order.locate(positions)
        marks.append(time.process_time())
        places = zip(of_shards.tolist(), samples.tolist())
        data = [shards.read(shard, sample, IMAGE_EXTENSIONS) for shard, sample in places]
        marks.append(time.process_time())
        for content in (content for sample in data for content in sample.values()):
            isal_zlib.crc32(content)  # what read did as well
        marks.append(time.process_time())
        images = [decode(sample[image_extension(list(sample)) or ""]) for sample in data]
        marks.append(time.process_time())
        for image, position in zip(images, positions.tolist()):
            resize_box(image, _box(image, position), CFG.image_size)
        marks.append(time.process_time())
        for name, start, end in zip(spent, marks, marks[1:]):
            spent[name] += (end - start) / (rounds * BATCH) * 1e6
    spent["read"] -= spent["crc"]
    return {name: round(value, 1) for name, value in spent.items()}


def _difference(shards: ShardSet, number: int = 200) -> float:
    """Mean absolute difference of our pixels and Pillow's over the same crops, of 255."""
    order, differences = Order(shards.lengths, 1, CFG.lanes, CFG.block), []
    for position in range(min(number, shards.num_samples)):
        _, shard, sample = order.sample_at(position)
        members = shards.read(shard, sample, IMAGE_EXTENSIONS)
        data = members[image_extension(list(members)) or ""]
        image = decode(data, apply_exif=False)
        top, left, tall, wide = box = _box(image, position)
        ours = resize_box(image, box, CFG.image_size).permute(1, 2, 0).numpy().astype(np.int16)
        pillow = Image.open(io.BytesIO(data)).convert("RGB").crop((left, top, left + wide, top + tall))
        theirs = np.asarray(pillow.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
        differences.append(float(np.abs(ours - theirs).mean()))
    return statistics.fmean(differences)


def _box(image: np.ndarray, position: int) -> tuple[int, int, int, int]:
    draws = _uniforms(crop_key(0, position))
    return random_box(image.shape[0], image.shape[1], draws, CFG.crop_scale, CFG.crop_aspect)


def _write_photos(folder: Path, number: int) -> str:
    """number JPEGs of 500 x 375 at quality 95, cut from scikit-image's photographs, in tars of 64."""
    from skimage import data

    photos = [Image.fromarray(getattr(data, name)()[..., :3]) for name in PHOTOS]
    rng = np.random.default_rng(0)
    for start in range(0, number, 64):
        with wds.TarWriter(str(folder / f"photos-{start // 64:03d}.tar")) as writer:
            for index in range(start, min(start + 64, number)):
                photo = photos[index % len(photos)]
                wide = min(photo.width, photo.height * 4 // 3) * rng.uniform(0.6, 1.0)
                left, top = rng.uniform(0, photo.width - wide), rng.uniform(0, photo.height - wide * 0.75)
                box = (left, top, left + wide, top + wide * 0.75)
                file = io.BytesIO()
                photo.resize((500, 375), Image.Resampling.BICUBIC, box=box).save(file, "JPEG", quality=95)
                label = str(index % len(photos)).encode()
                writer.write({"__key__": f"{index:06d}", "jpg": file.getvalue(), "cls": label})
    return str(folder / "*.tar")


def _report(results: dict[str, Any]) -> list[str]:
    """Prints the figures; the names of those that miss their goal."""
    rates, clock = results["images_per_core_second"], results["images_per_second_by_workers"]
    print(f"{results['data']}; {results['images']} images of {results['kilobytes_per_image']} kB; {results['machine']}")
    lines = {
        "ratio": f"tar to batch, images per core-second: ours {rates['ours']}, plain {rates['plain']}",
        "ratio_4_crops": f"4 crops per decode: ours {rates['ours_4_crops']}, plain {rates['plain']}",
        "workers_2_over_1": f"images per second: two workers {clock[2]}, one {clock[1]}",
        "order_and_crc_share": "order and checksums, share of what reading, decoding and cutting an image costs",
        "pixel_difference": "mean difference from Pillow's pixels, of 255",
    }
    missed = []
    for name, words in lines.items():
        (sign, goal), value = GOALS[name], results[name]
        if value is None:
            print(f"{words}: not measured, the machine is busy (goal {sign} {goal})")
            continue
        reached = value >= goal if sign == ">=" else value <= goal
        missed += [] if reached else [name]
        print(f"{words}: {value} (goal {sign} {goal}{'' if reached else ', MISSED'})")
    print("CPU microseconds per image:", ", ".join(f"{k} {v}" for k, v in results["microseconds_per_image"].items()))
    return missed


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", help="tars of images of your own; without it they are made")
    parser.add_argument("--images", type=int, default=448, help="how many images to make")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--batches", type=int, default=16, help="batches of 64 in each measurement; a multiple of 4")
    results = ROOT / "benchmarks" / "results" / "loader-cpu.json"
    parser.add_argument("--out", default=str(results), help="'' writes nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
