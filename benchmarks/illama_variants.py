"""Every way to train an iLLaMA, trained: what happens to the loss where the mask becomes causal, and what comes out.

    python -m benchmarks.illama_variants --train 'train/*.tar' --val 'val/*.tar' --data-name 'CIFAR-10'
    python -m benchmarks.illama_variants --share 0.05    # a few steps each on embedded photographs: shows that it works

Variants A, B, D and E pretrain by the files in configs/ on hidden patches; `supervised` learns classes, `vit` beside
it the same without a mask. All have one width and depth, and the soft mask falls from 1 to 0 in one step half way. One
process at a time, in the product's own commands. Runs stay under --runs, are read when finished and go on when cut.
Writes illama-variants.json, .md and .png to --out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image

from pretrain.tracking.charts import Point, Scale, smooth, ticks
from pretrain.tracking.cutoff import cutoff_step, jump_at, words
from pretrain.tracking.pen import Pen
from pretrain.tracking.run_data import load_run

ROOT = Path(__file__).resolve().parents[1]
_SAME = (
    "epochs=none", "data.batch_size=64", "data.workers=0", "backbone.width=64", "backbone.depth=4", "backbone.heads=2",
    "optim.base_lr=8e-3", "optim.warmup=0.1", "optim.final_lr_ratio=0.01", "engine.ema_decay=none",
    "tracking.panels_every=none", "tracking.wandb=off",
)  # fmt: skip
_CUTOFF = ("backbone.soft_mask.kind=constant", "backbone.soft_mask.cutoff=0.5")


@dataclass(frozen=True)
class Variant:
    """One run."""

    title: str
    config: str
    steps: int
    settings: tuple[str, ...] = _CUTOFF
    methods: str = "knn,linear"


VARIANTS = {
    "supervised": Variant("supervised", "illama_cifar_supervised", 500, methods="knn,linear,head"),
    "supervised_long": Variant(
        "supervised, four times as long", "illama_cifar_supervised", 2000,
        (*_CUTOFF, "data.batch_size=32", "data.crop_scale=0.7,1", "objective.label_smoothing=0", "optim.base_lr=2e-2"),
        "knn,linear,head",
    ),
    "A": Variant("A: mask tokens in place", "illama_cifar_simmim", 400),
    "B": Variant("B: MAE, visible patches alone", "illama_cifar_mae", 800,
                 (*_CUTOFF, "objective.decoder_width=64", "objective.decoder_depth=1", "objective.decoder_heads=2")),
    "D": Variant("D: questions behind the patches", "illama_cifar_queries", 400),
    "E": Variant("E: next patch, with a prefix", "illama_cifar_next", 300, ()),
    "vit": Variant("supervised ViT, no mask", "vit_cifar_supervised", 500, (), "knn,linear,head"),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.illama_variants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--train", default="embedded", help="labelled shards to train on; embedded photographs without")
    parser.add_argument("--val", default="none", help="labelled shards to be tested on")
    parser.add_argument("--data-name", default="embedded photographs", help="what the results call them")
    parser.add_argument("--only", default=",".join(VARIANTS), help="comma-separated: some of the variants")
    parser.add_argument("--share", type=float, default=1.0, help="of every variant's steps")
    parser.add_argument("--max-images", type=int, default=5000, help="of each split, for what is measured at the end")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "illama-variants", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if not set(names) <= set(VARIANTS):
        parser.error(f"--only={options.only}: choose among {', '.join(VARIANTS)}")
    import pretrain.train  # noqa: F401  # and DeepSpeed with it: before the first fork

    found = {name: measured(name, train(name, options), options) for name in names}
    write(found, options)


def train(name: str, options: argparse.Namespace) -> Path:
    """The run's directory, once it is trained."""
    variant, run_dir = VARIANTS[name], options.runs / name
    steps = max(10, round(options.share * variant.steps))
    if not any((run_dir / "ckpt").glob(f"{steps:010d}-*")):
        config = str(ROOT / "configs" / f"{variant.config}.py")
        data = (f"data.train={options.train}", f"data.val={options.val}", f"runs_dir={options.runs.resolve()}")
        lacuna("train", config, f"name={name}", f"steps={steps}", *data, *_SAME, *variant.settings)
    return run_dir


def measured(name: str, run_dir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one run shows: losses, the jump, what its features and its head are worth, ranks of its maps."""
    run = load_run(run_dir)
    limit = ("--max-images", str(options.max_images))
    shown, ranks = run_dir / f"evaluate-step-{run.last_step:07d}.json", run_dir / "attention-rank.json"
    if not shown.exists():
        lacuna("evaluate", str(run_dir), "--untrained", "--methods", VARIANTS[name].methods, *limit)
    if not ranks.exists():
        lacuna("evaluate", str(run_dir), "--attention")
    trained, untrained = json.loads(shown.read_text())["results"].values()
    (maps,) = json.loads(ranks.read_text())["results"].values()
    loss, alpha = run.curve("loss"), run.curve("alpha")
    cutoff = cutoff_step(alpha)
    jump = None if cutoff is None else jump_at(loss, cutoff)
    last = loss[-max(1, len(loss) // 20) :]
    return {
        "title": VARIANTS[name].title,
        "config": f"configs/{VARIANTS[name].config}.py",
        "settings": list(VARIANTS[name].settings),
        "steps": run.last_step,
        "images": run.steps[-1]["samples"],
        "train_s": run.training_s(),
        "loss": {"first": loss[0][1], "last": sum(value for _, value in last) / len(last), "last_is_mean_of": len(last)},
        "jump": None if jump is None else {**dataclasses.asdict(jump), "share": jump.share, "clear": jump.is_clear},
        "said": None if jump is None else words(jump, (1.0, alpha[-1][1])),
        "features": {"trained": trained, "untrained": untrained},
        "attention": [
            {"rank": sum(block["rank"]) / len(block["rank"]), "mask_alone": block["mask_rank"]} for block in maps["blocks"]
        ],
        "baselines": maps["baselines"],
        "curve": [[step, round(value, 4)] for step, value in loss],
    }  # fmt: skip


def write(found: dict[str, Any], options: argparse.Namespace) -> None:
    """The three files."""
    facts = {
        "command": f"python -m benchmarks.illama_variants --train TRAIN --val VAL --data-name '{options.data_name}'"
        f" --share {options.share:g} --max-images {options.max_images}",
        "data": options.data_name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, one thread at low priority beside other work",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "same": list(_SAME),
    }
    path = options.out / "illama-variants"
    path.with_suffix(".json").write_text(json.dumps({**facts, "variants": found}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(found, facts))
    picture(found).save(path.with_suffix(".png"), optimize=True)
    print(table(found, facts))


def table(found: dict[str, Any], facts: dict[str, Any]) -> str:
    """The same as markdown."""
    lines = [f"# iLLaMA, every variant trained: {facts['data']}", "",
             "Losses are of different things and no comparison. Untrained in brackets; accuracies in per cent.", "",
             "| | steps | loss, first and last | before the cutoff | highest after | jump | back after | kNN | linear | head |",
             "|---" * 10 + "|"]  # fmt: skip
    for row in found.values():
        jump, loss = row["jump"], row["loss"]
        cells = [row["title"], f"{row['steps']}", f"{loss['first']:.3f}, {loss['last']:.3f}"]
        if jump is None:
            cells += ["no soft mask", "", "", ""]
        else:
            back = "not" if jump["back_after"] is None else f"{jump['back_after']} steps"
            size = f"{100 * jump['share']:+.1f} %"
            cells += [f"{jump['before']:.4f}", f"{jump['highest']:.4f}", size if jump["clear"] else f"none ({size})",
                      back if jump["clear"] else ""]  # fmt: skip
        cells += [_score(row["features"], key) for key in ("knn", "linear", "head")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- **{row['title']}**: {row['said']}" for row in found.values() if row["said"]), "",
              "Rank of attention maps by block, means over heads and 30 images; in brackets uniform attention under the block's own mask.", "",
              "| | " + " | ".join(f"block {index}" for index in range(max(len(row["attention"]) for row in found.values()))) + " |"]  # fmt: skip
    lines.append("|---" * (lines[-1].count("|") - 1) + "|")
    for row in found.values():
        lines.append(f"| {row['title']} | " + " | ".join(f"{b['rank']:.1f} ({b['mask_alone']})" for b in row["attention"]) + " |")
    fixed = ", ".join(f"{name} {rank}" for name, rank in next(iter(found.values()))["baselines"].items())
    same = " ".join(facts["same"])
    return "\n".join([*lines, "", f"Baselines of that rank: {fixed}.", "", f"All: `{same}`", "", f"`{facts['command']}`",
                      f"{facts['date']}, {facts['machine']}"]) + "\n"  # fmt: skip


def _score(features: dict[str, Any], key: str) -> str:
    if key not in features["trained"]:
        return ""
    return f"{100 * features['trained'][key]:.1f} ({100 * features['untrained'][key]:.1f})"


_CELL, _COLUMNS, _GROUND = (560, 340), 2, (255, 255, 255)
_RAW, _LINE, _EVENT, _RULE = (12, 107, 102, 70), (12, 107, 102, 255), (179, 84, 30, 255), (126, 126, 126, 60)


def picture(found: dict[str, Any]) -> Image.Image:
    """A loss curve each, the cutoff marked."""
    width, height = _CELL
    rows = -(-len(found) // _COLUMNS)
    pen = Pen((width * _COLUMNS, height * rows))
    for number, row in enumerate(found.values()):
        _curve(pen, row, width * (number % _COLUMNS), height * (number // _COLUMNS))
    sheet = Image.new("RGB", (width * _COLUMNS, height * rows), _GROUND)
    drawn = pen.picture()
    sheet.paste(drawn, mask=drawn)
    return sheet


def _curve(pen: Pen, row: dict[str, Any], left: int, top: int) -> None:
    points: list[Point] = [(step, value) for step, value in row["curve"]]
    shown = [value for _, value in points[len(points) // 20 :]]  # the first fall would flatten the rest
    room = 0.05 * (max(shown) - min(shown))
    x = Scale(0, points[-1][0], left + 60, left + _CELL[0] - 20)
    y = Scale(min(shown) - room, max(shown) + room, top + _CELL[1] - 40, top + 44)
    for value in ticks(y.low, y.high, 4):
        pen.line([(x.start, y.at(value)), (x.end, y.at(value))], _RULE, 1)
        pen.text(x.start - 8, y.at(value), f"{value:.4g}", 14, "rm")
    for step in ticks(0, x.high, 4):
        pen.text(x.at(step), y.start + 8, f"{step:.0f}", 14, "ma")
    cut = row["jump"]["step"] if row["jump"] else points[-1][0] + 1
    parts = [part for part in ([p for p in points if p[0] < cut], [p for p in points if p[0] >= cut]) if part]
    for part in parts:
        for line, colour, thick in ((part, _RAW, 1), (smooth(part, sharp_start=True), _LINE, 2)):
            pen.line([(x.at(a), max(y.at(b), top + 40)) for a, b in line], colour, thick)
    if row["jump"]:
        pen.line([(x.at(cut), y.end), (x.at(cut), y.start)], _EVENT, 2)
        said = f"{100 * row['jump']['share']:+.1f} %" if row["jump"]["clear"] else "no jump"
        pen.text(x.at(cut) + 8, y.end, f"alpha 1 to 0: {said}", 15)
    pen.text(x.start, top + 12, f"{row['title']}: loss", 18)


def lacuna(*arguments: str) -> None:
    """One command of the product in a process of its own, forked: what is imported once serves all of them."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=(arguments,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"lacuna {' '.join(arguments)}: it ended with {process.exitcode}")


def _command(arguments: tuple[str, ...]) -> None:
    from launch.cli import main as run

    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
