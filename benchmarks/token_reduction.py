"""How much of an encoder's accuracy is left with few tokens: kNN on frozen features, against the tokens that stay.

    python benchmarks/token_reduction.py runs/mae runs/supervised --train 'train/*.tar' --val 'val/*.tar'

For every run and every share of patches that stays after one block, three ways: drawn by chance, those that get most
attention, and those with the others merged into a tenth as many. Training images and queries are reduced alike, and the
feature is the mean over patches, each token counting for those it stands for. The claim that an encoder trained with
hidden patches (MAE) loses less than a supervised one is asked of two runs given in this order: per way and share, what
is left of each one's own accuracy with all tokens.

Writes token-reduction.json and .png to --out. Two runs of a small encoder and 2 x 2,000 images take some minutes."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import machine, versions  # noqa: E402
from pretrain.data.evaluation_batches import evaluation_batches  # noqa: E402
from pretrain.data.shards import open_shards  # noqa: E402
from pretrain.engine.load import Loaded, load_backbone  # noqa: E402
from pretrain.evaluation.features import evaluating, read  # noqa: E402
from pretrain.evaluation.knn import knn_predict  # noqa: E402
from pretrain.evaluation.token_reduction import By, Stage, reducing  # noqa: E402
from pretrain.generate.curve import draw_curve  # noqa: E402

WAYS: dict[str, tuple[By, bool]] = {
    "random": ("random", False), "attention": ("attention", False), "merge": ("attention", True),
}  # fmt: skip


def main() -> int:
    """Measures, prints and writes; 0."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for path in options.runs:
        loaded = load_backbone(path)
        for share in (1.0, *options.shares):
            for way in WAYS if share < 1 else ("all",):
                row = _measure(loaded, share, way, options)
                rows.append({"run": loaded.config.name, "way": way, "share": share, **row})
                print(rows[-1], flush=True)
    result = {
        "command": " ".join(["python", "benchmarks/token_reduction.py", *map(_short, sys.argv[1:])]),
        "date": date.today().isoformat(), "machine": machine("cpu"), "versions": versions(), "after": options.after,
        "max_images": options.max_images, "rows": rows, "left": _left(rows),
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "token-reduction.json").write_text(json.dumps(result, indent=1) + "\n")
    words = "patch tokens after the reduction", "kNN, %", "Accuracy with few tokens"
    draw_curve(_lines(rows), options.out / "token-reduction.png", *words, log_x=True)
    print(json.dumps(result["left"], indent=1))
    return 0


def _measure(loaded: Loaded, share: float, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """kNN accuracy with this share of the patches, and how many tokens that is."""
    backbone, num = loaded.backbone, loaded.backbone.grid.num_patches
    by, merges = WAYS.get(way, ("attention", False))
    stage = Stage(options.after, share, max(1, round(share * num / 10)) if merges else 0)
    found = []
    with evaluating(backbone), reducing(backbone, [stage], by) as reduction:

        def row(images: Tensor) -> Tensor:
            return reduction.mean(backbone(backbone.embed(images)))

        for pattern in (options.train, options.val):
            shards = open_shards(pattern)
            batches = evaluation_batches(shards, loaded.config.data, batch_size=64, max_images=options.max_images)
            found.append(
                read(
                    row, backbone.width, batches, "cpu", dtype=torch.float32, gather=None, on_progress=None
                ).labelled
            )  # fmt: skip
    train, val = found
    correct = knn_predict(train.features, train.labels, val.features) == val.labels
    return {"tokens": stage.num_left(num), "knn": float(correct.float().mean()), "images": len(val.labels)}


def _left(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For every run, what a way and share leave of its accuracy with all tokens."""
    whole = {row["run"]: row["knn"] for row in rows if row["share"] == 1}
    left: dict[str, dict[str, float]] = {name: {} for name in whole}
    for row in rows:
        if row["share"] < 1:
            left[row["run"]][f"{row['way']} {row['share']:g}"] = round(row["knn"] / whole[row["run"]], 3)
    return left


def _lines(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for way in WAYS if row["way"] == "all" else (row["way"],):
            lines.setdefault(f"{row['run']}, {way}", []).append((row["tokens"], 100 * row["knn"]))
    return lines


def _short(argument: str) -> str:
    """Without the folders of this machine."""
    return "/".join(Path(argument).parts[-2:]) if "/" in argument else argument


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; the first two are compared")
    parser.add_argument("--train", required=True, help="labelled shards to learn from")
    parser.add_argument("--val", required=True, help="labelled shards to test on")
    parser.add_argument("--after", type=int, default=0, help="block after which tokens go (default 0, the first)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25, 0.125], help="of patches that stay")
    parser.add_argument("--max-images", type=int, default=2000, help="of each split (default 2000)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
