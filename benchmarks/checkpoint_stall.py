"""How long does training stand still for a checkpoint (goal G18)? `python benchmarks/checkpoint_stall.py`

One process trains configs/mae_vitb16.py on noise, saves now and then, in the loop or in the background, in turns. The
stall of a save in the loop is its own time; that of one in the background is the copy, the publication, and whatever
the steps beside it took longer than steps alone. Given as a share of ten minutes between two checkpoints. Writes
benchmarks/results/checkpoint-stall-DEVICE.json; five minutes on two CPU cores."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.machine import machine, versions, wait  # noqa: E402
from launch import environment  # noqa: E402
from masking.rng import generator  # noqa: E402
from pretrain.config import Config, load_config  # noqa: E402
from pretrain.engine.checkpoint import Checkpoints  # noqa: E402
from pretrain.engine.run_state import RunState  # noqa: E402
from pretrain.model import build_model, grid_of, num_draws  # noqa: E402
from pretrain.step import Recipe, train_step  # noqa: E402
from pretrain.types import Batch  # noqa: E402
from tests.campaign import Counts, counted  # noqa: E402

INTERVAL_S = 600.0
GOAL = 0.02  # of the interval


@dataclass
class Bench:
    """An engine with its checkpoints, and the next step."""

    config: Config
    engine: Any
    checkpoints: Checkpoints
    batch: Batch
    step: int = 0

    def train(self) -> float:
        """One step; its seconds."""
        recipe = Recipe(self.config.mask, grid_of(self.config), 0, 1000.0, num_draws(self.config))
        began = time.perf_counter()
        train_step(self.engine, [self.batch], recipe, self.step, len(self.batch.weight), 1e-4)
        wait(self.engine.device)
        self.step += 1
        return time.perf_counter() - began

    @property
    def state(self) -> RunState:
        """Of a run that stands at the next step."""
        return RunState(self.step, "0" * 64, 0, len(self.batch.weight), 1, 64)


def main() -> int:
    """Measures, prints and writes; 1 where the goal is missed in the background."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="stall-", dir=options.where) as folder:
        bench = _bench(Path(folder), options.batch)
        alone = [bench.train() for _ in range(3)][1:]
        rounds = [measure(bench, statistics.median(alone)) for _ in range(options.rounds)]
        size = sum(path.stat().st_size for path in Path(folder).glob("latest/*"))
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/checkpoint_stall.py", *sys.argv[1:]]),
        "date": date.today().isoformat(), "machine": machine(bench.engine.device), "versions": versions(),
        "megabytes": round(size / 1e6), "step_s": round(statistics.median(alone), 3),
        "rounds": rounds, "interval_s": INTERVAL_S, "goal": GOAL,
    }  # fmt: skip
    for way in ("in_the_loop", "background"):
        stall = statistics.median(row[way] for row in rounds)
        result[way] = {"stall_s": round(stall, 3), "share": round(stall / INTERVAL_S, 5)}
        print(f"{way:<12} {stall:7.2f} s of stall, {stall / INTERVAL_S:.2%} of ten minutes ({size / 1e6:.0f} MB)")
    bench.engine.close()
    path = Path(options.out or ROOT / "benchmarks" / "results" / f"checkpoint-stall-{bench.engine.device.type}.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["background"]["share"] >= GOAL)


def campaign(number: int, first: int = 0) -> Counts:
    """Goal G18 as one of many: number checkpoints, those that held training up for too long, and the longest stall."""
    with tempfile.TemporaryDirectory(prefix="stall-") as folder:
        bench = _bench(Path(folder), 4)
        step_s = statistics.median([bench.train() for _ in range(3)][1:])
        stalls = [measure(bench, step_s)["background"] for _ in range(number)]
        bench.engine.close()
    late = [f"checkpoint {first + at}: {stall:.1f} s" for at, stall in enumerate(stalls) if stall >= GOAL * INTERVAL_S]
    return counted(number, late, worst_stall_s=round(max(stalls), 2))


def measure(bench: Bench, step_s: float) -> dict[str, float]:
    """Seconds of stall of one checkpoint in the loop, and of one in the background with steps beside it."""
    began = time.perf_counter()
    assert bench.checkpoints.save(bench.state)
    in_the_loop = time.perf_counter() - began
    bench.train()
    began = time.perf_counter()
    bench.checkpoints.start(bench.state)
    copied = time.perf_counter() - began
    beside = [bench.train()]
    while not bench.checkpoints.written:
        beside.append(bench.train())
    began = time.perf_counter()
    assert bench.checkpoints.finish()
    published = time.perf_counter() - began
    slower = max(0.0, sum(beside) - step_s * len(beside))
    return {"in_the_loop": in_the_loop, "background": copied + slower + published, "copy": copied,
            "steps_slower": slower, "publication": published, "steps_beside": len(beside)}  # fmt: skip


def _bench(folder: Path, batch: int) -> Bench:
    place = environment.detect()
    environment.export(place, cuda=torch.cuda.is_available())
    from pretrain.engine.engine import Engine, init_distributed

    init_distributed(place)
    config = load_config(str(ROOT / "configs" / "mae_vitb16.py"), [f"data.batch_size={batch}", "engine.compile=false"])
    engine = Engine(
        build_model(config), config.optim, config.engine, batch_size=batch, run_dir=folder, environment=place
    )
    shape = (batch, 3, *config.data.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "bench")).to(engine.device)
    numbers, ones = torch.arange(batch), torch.ones(batch)
    noise = Batch(images=images, labels=-torch.ones_like(numbers), weight=ones, positions=numbers, digest=0, bad=())
    return Bench(config, engine, Checkpoints(folder, config.checkpoint, engine), noise)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--rounds", type=int, default=3, help="checkpoints of either kind (default 3)")
    parser.add_argument("--batch", type=int, default=128 if gpu else 4, help="images a step")
    parser.add_argument("--where", help="directory on the file system to write to (default: the temporary one)")
    parser.add_argument("--out", help="where to write the result instead of benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
