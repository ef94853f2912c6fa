"""Every way to train an iLLaMA, trained: what happens to the loss where the mask becomes causal, and what comes out.

    python -m benchmarks.illama_variants --train 'train/*.tar' --val 'val/*.tar' --data-name 'CIFAR-10'
    python -m benchmarks.illama_variants --share 0.05    # a few steps each on embedded photographs: shows that it works

Variants A, B, D and E pretrain by the files in configs/ on hidden patches; `supervised` learns classes, `vit` beside
it the same without a mask. All have one width and depth, and the soft mask falls from 1 to 0 in one step half way. One
process at a time, in the product's own commands. Runs stay under --runs, are read when finished and go on when cut.
Writes illama-variants.json, .md and .png to --out."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
    parser.add_argument("--train-only", action="store_true", help="stop before anything is measured")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if not set(names) <= set(VARIANTS):
        parser.error(f"--only={options.only}: choose among {', '.join(VARIANTS)}")
    import pretrain.train  # noqa: F401  # and DeepSpeed with it: before the first fork

    for name in names:
        train(name, options)


def train(name: str, options: argparse.Namespace) -> Path:
    """The run's directory, once it is trained."""
    variant, run_dir = VARIANTS[name], options.runs / name
    steps = max(10, round(options.share * variant.steps))
    if not any((run_dir / "ckpt").glob(f"{steps:010d}-*")):
        config = str(ROOT / "configs" / f"{variant.config}.py")
        data = (f"data.train={options.train}", f"data.val={options.val}", f"runs_dir={options.runs.resolve()}")
        lacuna("train", config, f"name={name}", f"steps={steps}", *data, *_SAME, *variant.settings)
    return run_dir


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
