"""Every way to train an iLLaMA, trained: what happens to the loss where the mask becomes causal, and what comes out.

    python -m benchmarks.illama_variants --train 'train/*.tar' --val 'val/*.tar' --data-name CIFAR-10
    python -m benchmarks.illama_variants --small    # a few steps each on photographs; shows that it works, no more

Variants A, B, D and E pretrain on hidden patches, by their files in configs/; `supervised` learns classes, and `vit`
beside it the same without a mask. All have one width and depth, and the soft mask falls from 1 to 0 in one step, half
way. Writes illama-variants.json, .md and .png to --out; runs stay under --runs, are read when finished and go on when
cut."""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from benchmarks.claims.one_run import ROOT
from benchmarks.illama_variants.one_run import measured, trained
from benchmarks.illama_variants.plans import SAME, VARIANTS
from benchmarks.illama_variants.result import Rows, picture, table
from pretrain.data.embedded import PHOTOGRAPHS
from pretrain.tracking.run_data import load_run

_SMALL = ("data.train=embedded", "data.val=none")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.illama_variants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--train", help="labelled shards to train on")
    parser.add_argument("--val", help="labelled shards to be tested on")
    parser.add_argument("--classes", type=int, default=10, help="that the labels tell apart")
    parser.add_argument("--data-name", default="photographs", help="what the results call them")
    parser.add_argument("--only", default=",".join(VARIANTS), help="comma-separated: some of the variants")
    parser.add_argument("--share", type=float, default=1.0, help="of every variant's steps")
    parser.add_argument("--max-images", type=int, default=5000, help="of each split, for kNN, linear probe and head")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/illama-variants without it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--small", action="store_true", help="few steps on embedded photographs")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if not set(names) <= set(VARIANTS):
        parser.error(f"--only={options.only}: choose among {', '.join(VARIANTS)}")
    if not options.small and not (options.train and options.val):
        parser.error("--train and --val are missing: give both, or --small")
    rows: Rows = {}
    data = _SMALL if options.small else (f"data.train={options.train}", f"data.val={options.val}")
    classes = len(PHOTOGRAPHS) if options.small else options.classes
    share, images = (0.0, 200) if options.small else (options.share, options.max_images)
    for name in names:
        labels = (f"objective.num_classes={classes}",) if "head" in VARIANTS[name].methods else ()
        run_dir = trained(name, _runs(options), share, (*data, *labels))
        rows[name] = measured(VARIANTS[name], run_dir, images)
        print(f"{rows[name]['title']}: {rows[name]['said'] or 'no soft mask'}", flush=True)
    _write(rows, options)


def _runs(options: argparse.Namespace) -> Path:
    folder: Path = options.runs or ROOT / "runs" / f"illama-variants{'-small' if options.small else ''}"
    return folder.resolve()


def _write(rows: Rows, options: argparse.Namespace) -> None:
    given = f"--train TRAIN --val VAL --data-name '{options.data_name}' --share {options.share:g}"
    facts = {
        "command": f"python -m benchmarks.illama_variants {'--small' if options.small else given}",
        "data": "embedded photographs" if options.small else options.data_name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, shared with other work; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread",
        "same": SAME,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"illama-variants{'-small' if options.small else ''}"
    path.with_suffix(".json").write_text(json.dumps({**facts, "variants": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(rows, facts))
    losses = {name: load_run(_runs(options) / name).curve("loss") for name in rows}
    picture(rows, losses).save(path.with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
