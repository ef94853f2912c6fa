"""`lacuna generate`: images of a token model as a picture, as arrays, and what they cost."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.generate.generate import Generated
    from pretrain.generate.sampling import Sampling


def generate(options: argparse.Namespace) -> None:
    """Writes grid.png, samples.npz (images, tokens, labels) and samples.json (settings, passes, seconds)."""
    import torch

    from pretrain.generate.generate import Generator
    from pretrain.generate.generate import generate as make
    from pretrain.tracking.progress import Progress

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = Generator.of(options.run, options.weights, options.step, device)
    sampling = _sampling(options)
    sampling.check(generator.backbone, generator.objective, generator.num_positions)
    labels = _labels(options.classes, generator.backbone.classes, options.num)
    batches = -(-options.num // max(options.batch_size, 1))
    with Progress(batches * options.steps, "steps", f"generating {options.num} images") as progress:
        made = make(
            generator, sampling, options.num, labels=labels, batch_size=options.batch_size,
            on_step=lambda _: progress.advance(),
        )  # fmt: skip
    loaded = generator.loaded
    made = replace(made, facts={"run": str(options.run), "step": loaded.step, "weights": loaded.which, **made.facts})
    out = options.out or options.run / "samples"
    for path in write(made, out, f"{options.run.name}, step {loaded.step}: {options.steps} steps"):
        print(path)
    facts = made.facts
    print(
        f"{facts['full_passes']} full and {facts['local_passes']} local passes, {facts['cost_in_full_passes']:.2f} in "
        f"full ones; {1000 * facts['seconds_per_image']:.1f} ms an image on {device}"
    )


def write(made: Generated, out: Path, title: str) -> list[Path]:
    """The three files of what was made, in the folder out."""
    import numpy as np

    from pretrain.generate.grid import grid_picture

    out.mkdir(parents=True, exist_ok=True)
    picture = grid_picture(made.images, out / "grid.png", title=title)
    arrays, facts = out / "samples.npz", out / "samples.json"
    np.savez_compressed(arrays, images=made.images.numpy(), tokens=made.tokens.numpy(), labels=made.labels.numpy())
    facts.write_text(json.dumps(made.facts, indent=2) + "\n")
    return [picture, arrays, facts]


def _sampling(options: argparse.Namespace) -> Sampling:
    from masking.recap import Plan
    from pretrain.generate.sampling import Sampling

    return Sampling(
        plan=Plan(options.steps, options.full_first, options.recap),
        decay=options.schedule,
        order=options.order,
        choice_temperature=options.choice_temperature,
        temperature=options.temperature,
        redraw=options.redraw,
        guidance=options.guidance,
        diffusion_steps=options.diffusion_steps,
        local_diffusion_steps=options.local_diffusion_steps,
        seed=options.seed,
    )


def _labels(asked: str | None, classes: int | None, num: int) -> Tensor | None:
    """The class of each image, (num,) int64: those asked for in turn."""
    import torch

    if classes is None:
        if asked is not None:
            raise ConfigError(f"--classes={asked}: this run was told of no classes; leave it out")
        return None
    wanted = range(classes) if asked in (None, "all") else [_class(text, classes) for text in str(asked).split(",")]
    return torch.tensor([wanted[place % len(wanted)] for place in range(num)])


def _class(text: str, classes: int) -> int:
    if not text.strip().isdigit() or int(text) >= classes:
        raise ConfigError(f"--classes has {text!r}; classes are 0 to {classes - 1}, separated by commas, or all")
    return int(text)
