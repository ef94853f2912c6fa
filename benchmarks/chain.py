"""Pretrain, then measure: kNN, probes, few labels, fine-tuning, segmentation, beside the same encoder from scratch.

    python benchmarks/chain.py                 # photographs that ship inside scikit-image
    python benchmarks/chain.py --train 'train/*.tar' --val 'val/*.tar' --classes 10 --size 32 --patch 4
    python benchmarks/chain.py ... --maps-train 'maps/train*.tar' --maps-val 'maps/val*.tar'

Every step of it is a command of `lacuna`, printed before it runs, so the chain can be followed by hand; a chain that
was interrupted goes on where it was. Each seed draws its own weights, order, crops and masks. Both sides of a row have
the same seed, images, steps and rate; fine-tuning from scratch has one rate for all layers. Probes from scratch are of
the encoder as it was drawn.

Writes benchmarks/results/chain-NAME.json and .md: mean and standard deviation over the seeds."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine, versions  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PROBES = {
    "knn": "kNN, 20 neighbours",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "lowshot_1%": "linear probe, 1 % of the labels",
    "lowshot_10%": "linear probe, 10 % of the labels",
}
TUNED, MIOU = "fine-tuning", "segmentation, mIoU"
Figures = dict[str, dict[str, float]]  # row -> side ("pretrained", "scratch") -> share in 0..1


def main() -> None:
    """Runs what is missing, prints the table and writes it."""
    options = _options()
    began, found = time.monotonic(), {}
    for seed in range(options.seeds):
        found[seed] = _seed(options, seed)
        minutes = (time.monotonic() - began) / 60
        print(f"seed {seed + 1} of {options.seeds} done after {minutes:.0f} minutes", flush=True)
    rows = {name: _row([found[seed][name] for seed in found]) for name in found[0]}
    facts = {
        "command": "python benchmarks/chain.py" + (" --train ..." if options.train != "embedded" else ""),
        "date": date.today().isoformat(),
        "machine": machine("cpu"),
        "versions": versions(),
        "options": {key: value for key, value in vars(options).items() if isinstance(value, int)},
        "rows": rows,
        "seeds": {str(seed): figures for seed, figures in found.items()},
    }
    table = "\n".join(_table(rows, options.seeds))
    (RESULTS / f"chain-{options.name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / f"chain-{options.name}.md").write_text(table + "\n")
    print(table)


def _seed(options: argparse.Namespace, seed: int) -> Figures:
    """The chain of one seed."""
    runs = options.work
    data = [f"data.train={options.train}", *([f"data.val={options.val}"] if options.val else [])]
    common = [f"seed={seed}", f"runs_dir={runs}", "data.workers=0", "epochs=none", *_encoder(options)]
    here = [*common, *data, f"data.image_size={options.size},{options.size}"]
    pre = f"pre-{seed}"
    decoder = ["objective.decoder_width=64", "objective.decoder_depth=1"]
    _lacuna("train", "configs/mae_cifar.py", f"name={pre}", f"steps={options.pretrain_steps}", *decoder, *here)
    probes = ["--methods", "knn,linear,attentive,lowshot", "--max-images", str(options.probe_images), "--untrained"]
    _lacuna("evaluate", str(runs / pre), *probes)
    probed = _newest(runs / pre, "evaluate-step-*.json")["results"]
    sides = {"scratch" if name.startswith("untrained") else "pretrained": row for name, row in probed.items()}
    found = {words: {side: row[key] for side, row in sides.items()} for key, words in PROBES.items()}
    tune = ["configs/finetune_cifar.py", *_calm(options.tune_steps), *here, f"objective.num_classes={options.classes}"]
    found[TUNED] = {
        side: next(iter(_newest(run_dir, "evaluate-step-*.json")["results"].values()))["head"]
        for side, run_dir in _both(tune, "tune", runs, seed).items()
    }
    if options.maps_train:
        maps = [f"data.train={options.maps_train}", f"data.val={options.maps_val}"]
        small = ["data.image_size=72,96", f"steps={options.segment_steps}"]  # frames at a fifth of their size
        segment = ["configs/segment_camvid.py", *small, *common, *maps]
        found[MIOU] = {}
        for side, run_dir in _both(segment, "segment", runs, seed).items():
            found[MIOU][side] = _newest(run_dir, "segments-step-*.json")["result"]["miou"]
    return found


def _both(arguments: list[str], name: str, runs: Path, seed: int) -> dict[str, Path]:
    """Fine-tunes from the pretrained run and from drawn weights; the run directory of each side."""
    names = {"pretrained": f"{name}-{seed}", "scratch": f"{name}-scratch-{seed}"}
    _lacuna("finetune", *arguments, f"name={names['pretrained']}", f"init_from={runs / f'pre-{seed}'}")
    _lacuna("finetune", *arguments, f"name={names['scratch']}", "optim.layer_decay=none", "--from-scratch")
    return {side: runs / folder for side, folder in names.items()}


def _encoder(options: argparse.Namespace) -> list[str]:
    return [f"backbone.{key}={getattr(options, key)}" for key in ("width", "depth", "heads")] + [
        f"backbone.patch_size={options.patch}"
    ]


def _calm(steps: int) -> list[str]:
    """A few hundred steps are too few for what makes long runs last: no mixing, no drop path, a short average."""
    calm = ["backbone.drop_path=0", "data.mixup=0", "data.cutmix=0", "engine.ema_decay=0.98"]
    return [f"steps={steps}", *calm]


def _lacuna(*arguments: str) -> None:
    """Runs one verb, after printing it; its own words go to the terminal."""
    print(f"$ lacuna {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "launch", *arguments], cwd=ROOT, check=True)


def _newest(run_dir: Path, pattern: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sorted(run_dir.glob(pattern))[-1].read_text())
    return found


def _row(seeds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of both sides, and of the difference within a seed."""
    values = {side: [figures[side] for figures in seeds] for side in ("pretrained", "scratch")}
    values["gain"] = [a - b for a, b in zip(values["pretrained"], values["scratch"], strict=True)]
    return {
        side: {"mean": statistics.fmean(each), "std": statistics.stdev(each) if len(each) > 1 else 0.0}
        for side, each in values.items()
    }


def _table(rows: dict[str, dict[str, dict[str, float]]], seeds: int) -> list[str]:
    head = f"| %, mean (standard deviation) of {seeds} seeds | pretrained | from scratch | difference |"
    return [head, "|---|---|---|---|"] + [
        f"| {name} | {_text(row['pretrained'])} | {_text(row['scratch'])} | {_text(row['gain'], '+')} |"
        for name, row in rows.items()
    ]


def _text(figure: dict[str, float], sign: str = "") -> str:
    return f"{100 * figure['mean']:{sign}.1f} ({100 * figure['std']:.1f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", default="embedded", help="labelled shards (default: photographs of scikit-image)")
    parser.add_argument("--val", help="labelled shards to test on")
    parser.add_argument("--classes", type=int, default=14, help="of the labels (default 14, the photographs)")
    parser.add_argument("--maps-train", help="shards of images with label maps, as configs/segment_camvid.py has them")
    parser.add_argument("--maps-val", help="the same, to test on")
    parser.add_argument("--name", default="embedded", help="of the result files (default embedded)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "chain", help="where the runs go (runs/chain)")
    parser.add_argument("--seeds", type=int, default=3, help="how often, each with other seeds (default 3)")
    shape = {"size": 64, "patch": 8, "width": 96, "depth": 4, "heads": 3}
    steps = {"pretrain-steps": 1000, "tune-steps": 200, "segment-steps": 150, "probe-images": 5000}
    for name, value in {**shape, **steps}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args()
    if (options.train == "embedded") != (options.val is None) or bool(options.maps_train) != bool(options.maps_val):
        parser.error("give --train with --val, and --maps-train with --maps-val")
    options.work = options.work.resolve()
    return options


if __name__ == "__main__":
    main()
