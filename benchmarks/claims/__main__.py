"""Compares the arms of a claim fairly: same data, steps, seeds and evaluation, every schedule completed.

    python -m benchmarks.claims color --train 'train/*.tar' --val 'val/*.tar' --seeds 3 --jobs 2
    python -m benchmarks.claims color --small --seeds 1 --arms uniform,green   # a minute; shows that it works, no more

Writes claims-NAME.json, .md and .png to --out; runs stay under --runs, are read when finished and go on when cut."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.claims import color
from benchmarks.claims.arms import Claim
from benchmarks.claims.one_run import ROOT, Budget, run, same_budget
from benchmarks.claims.result import Runs, picture, summary, table

CLAIMS = {"color": color.CLAIM}
_SMALL = (
    "data.train=embedded", "data.val=none", "data.batch_size=32", "data.workers=0", "backbone.width=48",
    "backbone.depth=2", "backbone.heads=3", "objective.decoder_width=32", "objective.decoder_depth=1",
    "tracking.panels_every=none", "engine.ema_decay=none", "optim.base_lr=1e-2",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--train", help="shards to pretrain on")
    parser.add_argument("--val", help="labelled shards")
    parser.add_argument("--arms", help="comma-separated, the baseline among them; all without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--points", type=int, default=8, help="of each curve, besides the untrained encoder")
    parser.add_argument("--max-images", type=int, default=4000, help="of each split, for kNN and linear probe")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; their seconds are then not comparable")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/claims-NAME without it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--small", action="store_true", help="few steps of a tiny network on embedded photographs")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, the same for all")
    options = parser.parse_args(arguments)
    claim = CLAIMS[options.claim]
    arms = list(claim.arms) if options.arms is None else options.arms.split(",")
    if claim.baseline not in arms or not set(arms) <= set(claim.arms):
        parser.error(f"--arms={options.arms}: choose among {', '.join(claim.arms)}, with {claim.baseline} among them")
    if not options.small and not (options.train and options.val):
        parser.error("--train and --val are missing: give both, or --small")
    budget = _budget(options)
    if not same_budget(budget):
        parser.error(f"--runs={budget.runs} holds runs of another budget or other settings: name another folder")
    runs = _all(claim, arms, options.seeds, options.jobs, budget)
    _write(claim, runs, options)


def _budget(options: argparse.Namespace) -> Budget:
    data = _SMALL if options.small else (f"data.train={options.train}", f"data.val={options.val}")
    steps, images = (24, 200) if options.small else (options.steps, options.max_images)
    folder = options.runs or ROOT / "runs" / f"claims-{options.claim}{'-small' if options.small else ''}"
    return Budget(steps, max(1, steps // options.points), images, folder.resolve(), (*data, *options.set))


def _all(claim: Claim, arms: list[str], seeds: int, jobs: int, budget: Budget) -> Runs:
    runs: Runs = {arm: {} for arm in arms}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run, claim, arm, seed, budget): (arm, seed) for seed in range(seeds) for arm in arms}
        for done in as_completed(waiting):
            arm, seed = waiting[done]
            runs[arm][seed] = done.result()
            print(f"seed {seed}  {arm:14s}  kNN {runs[arm][seed]['knn']:.1f} %", flush=True)
    return {arm: dict(sorted(by_seed.items())) for arm, by_seed in runs.items()}


def _write(claim: Claim, runs: Runs, options: argparse.Namespace) -> None:
    rows = summary(claim, runs)
    result = {
        "command": " ".join(["python -m benchmarks.claims", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "arms": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"claims-{options.claim}{'-small' if options.small else ''}"
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(claim, rows))
    picture(claim, runs, path.with_suffix(".png"))
    print(table(claim, rows))


if __name__ == "__main__":
    main()
