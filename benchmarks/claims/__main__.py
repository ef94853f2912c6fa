"""Compares the arms of a claim fairly: same data, steps, seeds and evaluation, every schedule completed.

    python -m benchmarks.claims color --train 'train/*.tar' --val 'val/*.tar' --seeds 3 --jobs 2
    python -m benchmarks.claims color --small --seeds 1 --arms uniform,green   # a minute; shows that it works, no more

Writes claims-NAME.json, .md and .png to --out; runs stay under --runs, are read when finished and go on when cut.
An arm with a teacher waits for the teacher's run of its seed."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import color, maskalign, mto_r
from benchmarks.claims.arms import Claim
from benchmarks.claims.one_run import ROOT, Budget, is_finished, read, run, same_budget
from benchmarks.claims.picture import picture
from benchmarks.claims.result import Runs, result_of
from benchmarks.claims.table import table

CLAIMS = {"color": color.CLAIM, "maskalign": maskalign.CLAIM, "mto-r": mto_r.CLAIM}
_SMALL = (
    "data.train=embedded", "data.val=none", "data.batch_size=32", "data.workers=0", "backbone.width=48",
    "backbone.depth=2", "backbone.heads=3", "tracking.panels_every=none", "engine.ema_decay=none", "optim.base_lr=1e-2",
)  # fmt: skip
_NOT_TOLD = (
    "--runs",
    "--out",
    "--data",
    "--machine",
)  # of a command: folders, and what its result says elsewhere


def main(arguments: list[str] | None = None) -> None:
    options, parser = _parse(arguments)
    claim = CLAIMS[options.claim]
    arms = list(claim.arms) if options.arms is None else options.arms.split(",")
    if claim.baseline not in arms or not set(arms) <= set(claim.arms):
        parser.error(f"--arms={options.arms}: choose among {', '.join(claim.arms)}, with {claim.baseline} among them")
    for arm in arms:
        if (teacher := claim.arms[arm].teacher) not in (None, *arms):
            parser.error(f"--arms={options.arms}: {teacher} is the teacher of {arm} and must be among them")
    if not options.small and not (options.train and options.val):
        parser.error("--train and --val are missing: give both, or --small")
    budget = _budget(claim, options)
    if not same_budget(budget):
        parser.error(f"--runs={budget.runs} holds runs of another budget or other settings: name another folder")
    if options.finished:
        runs = _finished(claim, arms, options.seeds, budget)
        if not runs[claim.baseline]:
            parser.error(f"--finished: {budget.runs} has no finished run of {claim.baseline}; leave it out to train")
    else:
        runs = in_turn(claim, arms, options.seeds, options.jobs, lambda arm, seed: run(claim, arm, seed, budget))
    _write(claim, runs, budget, options)


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--train", help="shards to pretrain on")
    parser.add_argument("--val", help="labelled shards")
    parser.add_argument("--data", help="what these are, for the result")
    parser.add_argument("--machine", help="what trained, for the result; the processor without it")
    parser.add_argument("--arms", help="comma-separated, the baseline among them; all without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--points", type=int, default=8, help="of each curve, besides the untrained encoder")
    parser.add_argument("--max-images", type=int, default=4000, help="of each split, for kNN and linear probe")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; their seconds are then not comparable")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/claims-NAME without it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--small", action="store_true", help="few steps of a tiny network on embedded photographs")
    parser.add_argument("--finished", action="store_true", help="train nothing: write what the runs that are there say")
    parser.add_argument("--set", nargs="*", default=[], help="of all arms; objective's: of the claim's own config")
    return parser.parse_args(arguments), parser


def _budget(claim: Claim, options: argparse.Namespace) -> Budget:
    data = (*_SMALL, *claim.small) if options.small else (f"data.train={options.train}", f"data.val={options.val}")
    steps, images = (24, 200) if options.small else (options.steps, options.max_images)
    folder = options.runs or ROOT / "runs" / f"claims-{options.claim}{'-small' if options.small else ''}"
    return Budget(steps, max(1, steps // options.points), images, folder.resolve(), (*data, *options.set))


def in_turn(
    claim: Claim, arms: list[str], seeds: int, jobs: int, one_run: Callable[[str, int], dict[str, Any]]
) -> Runs:
    """What one_run(arm, seed) returns, seed by seed, jobs at a time; a run whose teacher is not there lets others go
    first."""
    runs: Runs = {arm: {} for arm in arms}
    left = [(seed, arm) for seed in range(seeds) for arm in arms]
    going: dict[Future[dict[str, Any]], tuple[int, str]] = {}

    def ready() -> Iterator[tuple[int, str]]:
        for seed, arm in left:
            if (teacher := claim.arms[arm].teacher) is None or seed in runs[teacher]:
                yield seed, arm

    with ThreadPoolExecutor(jobs) as pool:
        while left or going:
            while len(going) < jobs and (one := next(ready(), None)):
                left.remove(one)
                going[pool.submit(one_run, one[1], one[0])] = one
            assert going, f"{left} wait for each other"
            for done in wait(going, return_when=FIRST_COMPLETED).done:
                seed, arm = going.pop(done)
                runs[arm][seed] = done.result()
                print(f"seed {seed}  {arm:20s}  kNN {runs[arm][seed]['knn']:.1f} %", flush=True)
    return {arm: dict(sorted(by_seed.items())) for arm, by_seed in runs.items()}


def _finished(claim: Claim, arms: list[str], seeds: int, budget: Budget) -> Runs:
    """Those that are there already, with their teachers."""
    found: Runs = {arm: {} for arm in arms}
    for seed in range(seeds):
        for arm in arms:
            needed = (arm, claim.arms[arm].teacher)
            if all(is_finished(claim, one, seed, budget) for one in needed if one is not None):
                found[arm][seed] = read(claim, arm, seed, budget)
    return found


def _write(claim: Claim, runs: Runs, budget: Budget, options: argparse.Namespace) -> None:
    result = {
        "command": _command(sys.argv[1:]),
        "data": "embedded photographs" if options.small else options.data,
        "machine": f"{options.machine or platform.processor() or platform.machine()}, {options.jobs} runs at a time; "
        f"torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
        **result_of(claim, runs, budget.steps),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"claims-{options.claim}{'-small' if options.small else ''}"
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(claim, result))
    picture(claim, runs, path.with_suffix(".png"))
    print(table(claim, result))


def _command(words: list[str]) -> str:
    """The command as another would give it, without the folders of this machine."""
    told, before = ["python -m benchmarks.claims"], ""
    for word in words:
        if word not in (*_NOT_TOLD, "--finished") and before not in _NOT_TOLD:
            told.append({"--train": "train", "--val": "val"}.get(before, word))
        before = word
    return " ".join(told)


if __name__ == "__main__":
    main()
