"""Numbers that must not move without somebody meaning it: `make golden` writes them, tests/test_golden.py compares.

A change of the order of samples, of masks, of initial weights or of the loss shows here first. Integers are compared
exactly; floats to 1e-5 of their size, since sums come out a little different on other processors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATH = Path(__file__).with_suffix(".json")
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # the checkout is not on the path before the line above
import torch  # noqa: E402

from masking.draw import draw, named_noise  # noqa: E402
from masking.mask import Mask  # noqa: E402
from masking.rng import generator, prf  # noqa: E402
from pretrain.config import load_config  # noqa: E402
from pretrain.data.order import Order, sample_digest  # noqa: E402
from pretrain.model import build_model, grid_of, num_draws  # noqa: E402
from pretrain.types import Labels  # noqa: E402

_NO_FILE = ["objective.teacher.model=ema"]  # a teacher that is there
_NO_DROP = ["backbone.dropout=0"]  # torch drops by random numbers that differ between processors
_NO_RUN = [*_NO_DROP, "backbone.tokenizer.path=palette", "backbone.tokenizer.patch_size=4"]  # it has no weights


def compute() -> dict[str, Any]:
    """Every golden number, by name."""
    runs = {"tiny_cpu": [], "simmim_cifar": [], "illama_cifar_mae": [], "illama_cifar_supervised": [],
            "maskalign_cifar": _NO_FILE, "mto_r_simmim_cifar": [], "mto_r_mae_cifar": [], "tokenizer_fsq_cifar": [],
            "maskgit_cifar": _NO_RUN, "mage_cifar": _NO_RUN, "mar_cifar": _NO_DROP}  # fmt: skip
    found = {"prf": str(prf(1, "golden", 2)), **_order()}
    return found | {key: value for run in runs.items() for key, value in _objective(*run).items()}


def _order() -> dict[str, Any]:
    order = Order([7, 0, 100, 33], seed=5, lanes=4, block=16)
    epochs, shards, samples = order.locate(np.arange(130, 150))
    digest = sum(sample_digest(int(shard), int(sample), 0) for shard, sample in zip(shards, samples, strict=True))
    return {
        "order": list(zip(epochs.tolist(), shards.tolist(), samples.tolist(), strict=True)),
        "digest": str(digest % 2**64),
    }


def _objective(name: str, overrides: list[str]) -> dict[str, Any]:
    config = load_config(ROOT / "configs" / f"{name}.py", overrides)
    model = build_model(config)
    shape = (4, config.data.in_chans, *config.data.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "golden"))
    target = model.objective.target(images, Labels.single(torch.tensor([3, 0, 9, 1])))
    mask, rows = Mask.of_nothing(4, grid_of(config)), torch.tensor([1, 3, 5, 7])
    if config.mask is not None:
        mask = draw(config.mask, grid_of(config), rows, config.seed, 11, target.guidance)
    noise = named_noise(rows, config.seed, "predict", 11).uniform(num_draws(config)) if num_draws(config) else None
    losses, features = model(images, mask, target, noise)
    seen = features.tokens if features.tokens.numel() else features.prefix  # a head on the class token asks for no more
    sum(values.sum() for values in model.objective.minimised(losses).values()).backward()  # type: ignore[union-attr]
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return {
        f"{name}.visible": mask.ids_keep[0].tolist(),
        f"{name}.loss": {key: values.tolist() for key, values in losses.items()},
        f"{name}.feature": float(seen.detach().double().square().mean()),
        f"{name}.grad_norm": float(norm.detach()),
    }


if __name__ == "__main__":
    text = json.dumps(compute(), indent=1) + "\n"
    if "--write" in sys.argv:
        PATH.write_text(text)
    print(text, end="")
