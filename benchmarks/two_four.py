"""Two of every four weights: the reconstruction loss of an encoder as it is, pruned by magnitude, and by learned masks.

    python benchmarks/two_four.py runs/pre runs/twofour --val 'val/*.tar'

The second run is the first one under sparse.method=two_four with sparse.train_rest=false, so weights and decoder
are the same on all three sides, and what differs is which weights are zero. Every side sees the same held-out images
under the same masks.

Writes two-four.json to --out."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import machine, versions  # noqa: E402
from masking.draw import draw  # noqa: E402
from pretrain.data.evaluation_batches import evaluation_batches  # noqa: E402
from pretrain.data.shards import open_shards  # noqa: E402
from pretrain.engine.load import Loaded, load_backbone  # noqa: E402
from pretrain.model import grid_of  # noqa: E402
from pretrain.sparse.two_four import magnitude_mask  # noqa: E402


def main() -> int:
    """Measures, prints and writes; 0."""
    options = _options()
    torch.set_num_threads(options.threads)
    dense = load_backbone(options.dense, with_objective=True)
    learned = load_backbone(options.learned, with_objective=True)
    losses = {"dense": _loss(dense, options), "learned 2:4": _loss(learned, options)}
    pruned = {name for name, tensor in learned.backbone.state_dict().items() if _is_pruned(name, tensor)}
    state = dense.backbone.state_dict()
    for name in pruned:
        state[name] *= magnitude_mask(state[name])
    losses["magnitude 2:4"] = _loss(dense, options)
    kept = [(learned.backbone.state_dict()[name] != 0) == (state[name] != 0) for name in pruned]
    same = float(torch.cat([mask.reshape(-1) for mask in kept]).float().mean())
    result = {
        "command": f"python benchmarks/two_four.py {options.dense.name} {options.learned.name}",
        "date": date.today().isoformat(), "machine": machine("cpu"), "versions": versions(),
        "images": options.max_images, "matrices": len(pruned), "same_as_magnitude": same, "loss": losses,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "two-four.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


@torch.no_grad()
def _loss(loaded: Loaded, options: argparse.Namespace) -> float:
    """The mean reconstruction loss of held-out images, under masks that are the same for every side."""
    config, objective = loaded.config, loaded.objective
    assert objective is not None and config.mask is not None
    total, number = 0.0, 0
    batches = evaluation_batches(open_shards(options.val), config.data, batch_size=64, max_images=options.max_images)
    for images, _ in batches:
        rows = torch.arange(number, number + len(images))
        mask = draw(config.mask, grid_of(config), rows, seed=0, step=0)
        losses, _ = objective(loaded.backbone, images, mask, objective.target(images))
        total += float(losses["pixel"].sum())
        number += len(images)
    return total / number


def _is_pruned(name: str, tensor: Tensor) -> bool:
    return name.startswith("blocks.") and tensor.ndim == 2 and name.endswith(".weight")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path, help="run directory of the pretrained encoder")
    parser.add_argument("learned", type=Path, help="run directory of its masks")
    parser.add_argument("--val", required=True, help="shards of held-out images")
    parser.add_argument("--max-images", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
