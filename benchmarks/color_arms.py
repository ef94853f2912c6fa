"""What the colour of the mask's noise does: the same small run with each, over several seeds.

    python benchmarks/color_arms.py --train 'train/*.tar' --val 'val/*.tar'   # writes results/color-arms.json

Each arm is `lacuna train configs/colormae_cifar.py` with one other mask; its runs stay under --runs, and a run that is
there is gone on with or read, not made again. Arms are compared with uniform masks seed by seed (same samples, crops,
initial weights): the mean difference over seeds, with its 95 % interval from Student's t. A loss is the mean over the
last tenth of the steps, on the hidden patches of the arm's own masks; kNN and linear probe are those of the last step,
in percent."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "uniform": ["mask=Uniform"],
    "white": ["mask.color=white"],
    "blue": ["mask.color=blue"],
    "green": ["mask.color=green"],
    "green-1-pass": ["mask.passes=1"],
    "purple": ["mask.color=purple"],
    "red": ["mask.color=red"],
}
# 97.5 % quantile of Student's t by degrees of freedom
_STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", required=True, help="shards to pretrain on")
    parser.add_argument("--val", required=True, help="labelled shards")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated, uniform among them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--max-images", type=int, default=4000, help="of each split, for kNN and linear probe")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "color-arms")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "color-arms.json")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, the same for all")
    options = parser.parse_args()
    arms = options.arms.split(",")
    runs: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in arms}
    for seed in range(options.seeds):
        for arm in arms:
            runs[arm][seed] = one(options, arm, seed)
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in runs[arm][seed].items())
            print(f"seed {seed}  {arm:14s}  {numbers}", flush=True)
            write(options, runs)


def one(options: argparse.Namespace, arm: str, seed: int) -> dict[str, float]:
    """Trains, or finds trained, one arm with one seed: its loss, kNN and linear probe."""
    name = f"{arm}-{seed}"
    run_dir = options.runs / name
    command = [
        sys.executable, "-m", "pretrain", "train", str(ROOT / "configs" / "colormae_cifar.py"), f"name={name}",
        *ARMS[arm], f"seed={seed}", f"steps={options.steps}", "epochs=none", f"runs_dir={options.runs}",
        f"data.train={options.train}", f"data.val={options.val}", "evaluation.every_steps=none", *options.set,
    ]  # fmt: skip
    found = run_dir / f"evaluate-step-{options.steps:07d}.json"
    if not found.exists():
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        measure = ["evaluate", str(run_dir), "--max-images", str(options.max_images)]
        subprocess.run([*command[:3], *measure], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines][-max(1, options.steps // 10) :]
    (last,) = json.loads(found.read_text())["results"].values()
    return {"loss": statistics.fmean(losses), "knn": 100 * last["knn"], "linear": 100 * last["linear"]}


def write(options: argparse.Namespace, runs: dict[str, dict[int, dict[str, float]]]) -> None:
    """What is known so far, as JSON."""
    rows = {}
    for arm, by_seed in runs.items():
        rows[arm] = {"runs": by_seed, "mean": means(list(by_seed.values()))}
        base = runs.get("uniform", {})
        shared = [seed for seed in by_seed if seed in base]
        if arm != "uniform" and len(shared) > 1:
            rows[arm]["less uniform"] = {
                key: interval([by_seed[seed][key] - base[seed][key] for seed in shared]) for key in by_seed[shared[0]]
            }
    result = {
        "command": " ".join(["python", "benchmarks/color_arms.py", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "images": options.steps * 128,
        "arms": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def means(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over runs."""
    return {key: statistics.fmean(run[key] for run in found) for key in found[0]} if found else {}


def interval(values: list[float]) -> dict[str, float]:
    """Mean of paired differences and half the width of its 95 % interval."""
    half = _STUDENT[min(len(values) - 1, 9)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "plus_minus": half}


if __name__ == "__main__":
    main()
