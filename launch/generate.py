"""`lacuna generate`: images of a token model as a picture, as arrays, and what they cost."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.data.evaluation_batches import EvaluationBatches
    from pretrain.data.settings import DataConfig
    from pretrain.generate.feature_space import FeatureSpace
    from pretrain.generate.generate import Generated, Generator
    from pretrain.generate.sampling import Sampling


def add_options(made: argparse.ArgumentParser) -> None:
    """What `lacuna generate` may be told."""
    made.add_argument("run", type=Path, help="run directory, for example runs/maskgit_cifar")
    made.add_argument("-o", "--out", type=Path, help="folder for what is written (default: RUN/samples)")
    made.add_argument("--num", type=int, default=64, help="images (default 64)")
    made.add_argument("--steps", type=int, default=16, help="decoding steps of an image (default 16)")
    made.add_argument("--recap", type=int, default=0, metavar="U", help="local steps behind each full one (default 0)")
    made.add_argument("--joint", type=Path, metavar="RUN", help="a joint sampler, for local steps instead of ReCAP")
    made.add_argument("--stop", type=float, metavar="P", help="decode early what the run's rule finds settled with P")
    made.add_argument("--learn-stopping", metavar="SHARDS", help="learn that rule from these images, and end")
    made.add_argument("--full-first", type=int, default=0, metavar="P", help="full steps at the start (default 0)")
    made.add_argument("--schedule", default="cosine", help="what stays masked: cosine, arccos, linear, square, power")
    made.add_argument("--order", help="of decoding: confidence, random, halton (default: confidence; MAR: random)")
    made.add_argument("--choice-temperature", type=float, default=4.5, help="noise on confidences (default 4.5)")
    made.add_argument("--temperature", type=float, default=1.0, help="of draws (default 1)")
    made.add_argument("--redraw", action="store_true", help="draw codes of full steps anew, as ReCAP's authors do")
    made.add_argument("--guidance", type=float, default=0.0, help="towards the class; MAR's cfg less 1 (default 0)")
    made.add_argument("--classes", help="classes to ask for in turn: 0,3 or all (default: all there are)")
    made.add_argument("--cache-buffer", action="store_true", help="MAR: local steps do not recompute buffer tokens")
    made.add_argument("--diffusion-steps", type=int, default=100, help="of MAR's head (default 100)")
    made.add_argument("--local-diffusion-steps", type=int, help="the same in local steps (default: as many)")
    made.add_argument("--seed", type=int, default=0, help="image i is the same whatever the batch (default 0)")
    made.add_argument("--batch-size", type=int, default=64, help="images at once (default 64)")
    made.add_argument(
        "--weights", choices=("ema", "model"), default="ema", help="which weights (default ema, where kept)"
    )
    made.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    made.add_argument("--delta", type=float, default=0.1, help="change that counts as settled, nats (default 0.1)")
    made.add_argument("--max-images", type=int, default=10_000, help="to learn the rule from (default 10000)")
    made.add_argument("--compare", metavar="SHARDS", help="score the images against these real ones, in --space")
    made.add_argument("--space", type=Path, help="a run whose encoder's features are compared, or Inception's weights")


def generate(options: argparse.Namespace) -> None:
    """Writes grid.png, samples.npz (images, tokens, labels) and samples.json (settings, passes, seconds, score)."""
    import torch

    from pretrain.generate.generate import Generator
    from pretrain.generate.generate import generate as make
    from pretrain.generate.joint import Joint
    from pretrain.tracking.progress import Progress

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = Generator.of(options.run, options.weights, options.step, device)
    if options.joint is not None:
        generator = replace(generator, joint=Joint.of(options.joint, device=device))
    if options.learn_stopping is not None:
        _learn_stopping(options, generator)
        return
    sampling = _sampling(options)
    if options.stop is not None:
        generator = _with_rule(options, generator, sampling)
    sampling.check(generator.backbone, generator.objective, generator.num_positions)
    labels = _labels(options.classes, generator.backbone.classes, options.num)
    judge = _Judge.of(options, generator.pixels, device)
    batches = -(-options.num // max(options.batch_size, 1))
    with Progress(batches * options.steps, "steps", f"generating {options.num} images") as progress:
        made = make(
            generator, sampling, options.num, labels=labels, batch_size=options.batch_size,
            on_step=lambda _: progress.advance(),
        )  # fmt: skip
    loaded = generator.loaded
    facts = {"run": str(options.run), "step": loaded.step, "weights": loaded.which, **made.facts}
    if judge is not None:
        facts["score"] = judge.score(made.images, labels)
    title = f"{options.run.name}, step {loaded.step}: {options.steps} steps"
    for path in write(replace(made, facts=facts), options.out or options.run / "samples", title):
        print(path)
    print(_said(facts))


def _learn_stopping(options: argparse.Namespace, generator: Generator) -> None:
    """Writes the rule beside the run, and says what it is worth."""
    from pretrain.data.evaluation_batches import evaluation_batches
    from pretrain.data.shards import open_shards
    from pretrain.data.sources import as_pattern
    from pretrain.generate.stopping_filter import learn, save
    from pretrain.tracking.progress import Progress

    shards = open_shards(as_pattern(options.learn_stopping))
    batches = evaluation_batches(shards, generator.pixels, options.batch_size, max_images=options.max_images)
    with Progress(batches.num_images, "images", "looking twice") as progress:
        made, facts = learn(generator, batches, delta=options.delta, seed=options.seed, on_progress=progress.advance)
    print(save(made, generator, facts | {"delta": options.delta, "images": batches.num_images}, options.run))
    print(
        f"of hidden positions {facts['settled']:.1%} are settled; the rule is right about {facts['right']:.1%}, and "
        f"with --stop 0.9 calls {facts['called']:.1%} settled, of which {facts['called_rightly']:.1%} are"
    )


def _with_rule(options: argparse.Namespace, generator: Generator, sampling: Sampling) -> Generator:
    from pretrain.generate.stopping import check
    from pretrain.generate.stopping_filter import load

    if options.joint is not None:
        raise ConfigError("--stop leaves out full steps, and --joint takes local ones; give one of them")
    check(generator.objective, sampling)
    return replace(generator, rule=load(generator, options.run, options.stop))


class _Judge:
    """Real images to compare with, and the features in which that is done."""

    def __init__(self, space: FeatureSpace, real: EvaluationBatches) -> None:
        self.space, self.real = space, real

    @classmethod
    def of(cls, options: argparse.Namespace, pixels: DataConfig, device: str) -> _Judge | None:
        """The one asked for; None where none is. pixels says how real images are cut."""
        from pretrain.data.evaluation_batches import evaluation_batches
        from pretrain.data.shards import open_shards
        from pretrain.data.sources import as_pattern
        from pretrain.generate.feature_space import own_space
        from pretrain.generate.inception import inception_space

        if (options.compare is None) != (options.space is None):
            raise ConfigError(
                "--compare names real images and --space the features they are compared in: a run of a supervised "
                "encoder, say, or a file of Inception's weights; give both, or neither"
            )
        if options.compare is None:
            return None
        if not options.space.exists():
            raise ConfigError(f"--space={options.space} is not there; give a run or a file of Inception's weights")
        known = own_space if options.space.is_dir() else inception_space
        real = evaluation_batches(open_shards(as_pattern(options.compare)), pixels, batch_size=64)
        return cls(known(options.space, device=device), real)

    def score(self, images: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """See `pretrain.generate.score.score`."""
        from pretrain.generate.score import score
        from pretrain.tracking.progress import Progress

        with Progress(len(images) + self.real.num_images, "images", "comparing") as progress:
            return score(images, labels, self.real, self.space, on_progress=progress.advance)


def _said(facts: dict[str, Any]) -> str:
    """What a user reads in the end."""
    cost = (
        f"{facts['full_passes']} full and {facts['local_passes']} local passes, {facts['cost_in_full_passes']:.2f} in "
        f"full ones; {1000 * facts['seconds_per_image']:.1f} ms an image on {facts['device']}"
    )
    score = dict(facts.get("score", {}))
    warnings, name = score.pop("warnings", []), score.pop("space", "")
    texts = {key: f"{value:.4f}" if isinstance(value, float) else str(value) for key, value in score.items()}
    lines = [f"  {key:<18} {text}" for key, text in texts.items()]
    if "fewest_passes" in facts:
        cost += f"; {facts['fewest_passes']} to {facts['most_passes']} passes an image"
    return "\n".join([cost, *([name] if name else []), *lines, *(f"note: {warning}" for warning in warnings)])


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
        cache_buffer=options.cache_buffer,
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
