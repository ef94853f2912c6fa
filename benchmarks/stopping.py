"""What a learned stopping rule is worth beside one threshold for all positions, and beside fewer steps.

    python benchmarks/stopping.py RUN --learn 'train/*.tar' --real 'val/*.tar' --space RUN

First on real images, partly hidden: both rules choose the same share of the hidden positions, those they are surest of,
and what the model says of these changes by so much when more of the image is known (nats; less is better). The learned
rule must be below the threshold at every share. Then on samples: the distance between features of generated and real
images over the mean number of full passes, for the ordinary sampler of several T, and for both rules at several
thresholds on top of the largest T. Means over seeds. Writes stopping-NAME-ORDER.json, .md and .png to --out."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.generation import likelihood, read_real  # noqa: E402
from benchmarks.machine import machine, versions  # noqa: E402
from masking.recap import Plan  # noqa: E402
from pretrain.data.evaluation_batches import evaluation_batches  # noqa: E402
from pretrain.data.shards import open_shards  # noqa: E402
from pretrain.data.sources import as_pattern  # noqa: E402
from pretrain.generate.curve import draw_curve  # noqa: E402
from pretrain.generate.feature_space import own_space  # noqa: E402
from pretrain.generate.generate import Generator, generate  # noqa: E402
from pretrain.generate.sampling import Sampling  # noqa: E402
from pretrain.generate.score import score  # noqa: E402
from pretrain.generate.stopping import Confident, Rule  # noqa: E402
from pretrain.generate.stopping_filter import Filter, Learned, learn, look_twice  # noqa: E402
from pretrain.tracking.progress import Progress  # noqa: E402

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
BASE, LEARNED, SURE = "fewer steps", "learned rule", "one threshold"


def main() -> int:
    """Learns, compares, prints and writes; returns 1 where the threshold is better on real images at some share."""
    options = _options()
    torch.set_num_threads(options.threads)
    generator = Generator.of(options.run, device=options.device)
    batches = evaluation_batches(
        open_shards(as_pattern(options.learn)), generator.pixels, 64, max_images=options.max_images
    )
    with Progress(batches.num_images, "images", "learning") as progress:
        made, facts = learn(generator, batches, delta=options.delta, on_progress=progress.advance)
    changes = compare_on_real(generator, made, options)
    lines = compare_samples(generator, made, options)
    result = {
        "command": _command(), "date": date.today().isoformat(), "machine": machine(options.device),
        "versions": versions(), "run": {"name": generator.loaded.config.name, "step": generator.loaded.step},
        "filter": facts | {"delta": options.delta, "images": batches.num_images}, "changes": changes, "lines": lines,
        "images": options.num, "seeds": options.seeds, "order": options.order,
    }  # fmt: skip
    _write(result, options)
    return int(any(row[LEARNED] >= row[SURE] for row in changes))


def compare_on_real(generator: Generator, made: Filter, options: argparse.Namespace) -> list[dict[str, float]]:
    """The mean change of what each rule chooses, by share, on images that the filter has not seen."""
    batches = evaluation_batches(
        open_shards(as_pattern(options.real)), generator.pixels, 64, max_images=options.max_images
    )
    parts, first = [], 0
    for images, labels in batches:
        parts.append(look_twice(generator, images, labels, torch.arange(first, first + len(images)), seed=1))
        first += len(images)
    inputs, change = (torch.cat(side) for side in zip(*parts))
    with torch.no_grad():
        scores = {LEARNED: made(inputs), SURE: inputs[:, 4]}  # the confidence in the middle
    rows = []
    for share in SHARES:
        count = round(share * len(change))
        row = {name: float(change[by.topk(count).indices].mean()) for name, by in scores.items()}
        rows.append({"share": share, "positions": len(change), "all": float(change.mean()), **row})
    return rows


def compare_samples(generator: Generator, made: Filter, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line a sampler: its mean passes and what its images are worth."""
    space = own_space(options.space, device=options.device)
    real = read_real(generator, space, options)
    most = max(options.steps)
    rules: list[tuple[str, int, Rule | None, float]] = [(BASE, steps, None, 0.0) for steps in options.steps]
    rules += [(LEARNED, most, Learned(made, generator.backbone.grid, least), least) for least in options.stop]
    rules += [(SURE, most, Confident(least), least) for least in options.sure]
    lines = []
    with Progress(len(rules) * options.seeds * options.num, "images", "generating") as progress:
        for name, steps, rule, least in rules:
            found = []
            for seed in range(options.seeds):
                sampling = Sampling(Plan(steps), order=options.order, seed=seed)
                classes = generator.backbone.classes
                labels = None if classes is None else torch.arange(options.num) % classes
                asked = replace(generator, rule=rule)
                images = generate(asked, sampling, options.num, labels=labels, batch_size=options.batch_size)
                worth = score(images.images, labels, real, space)
                passes = float(images.facts["full_passes"])
                figures = likelihood(generator, images, options.batch_size)
                found.append({"passes": passes, "fid": worth["fid"], **figures})
                progress.advance(options.num)
            means = {key: statistics.mean(one[key] for one in found) for key in found[0]}
            fids = [one["fid"] for one in found]
            lines.append({"name": name, "T": steps, "threshold": least, **means, "fids": fids})
    return lines


def _write(result: dict[str, Any], options: argparse.Namespace) -> None:
    run, made, first = result["run"], result["filter"], result["changes"][0]
    stem = options.out / f"stopping-{run['name']}-{options.order}"
    options.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = [
        f"# {run['name']}, step {run['step']}: a learned stopping rule, {options.order} order", "",
        f"The filter, from {made['images']} images: {made['settled']:.1%} of hidden positions are settled (a change "
        f"below {options.delta} nats), it is right about {made['right']:.1%}.", "",
        f"Change of what is chosen among {first['positions']} hidden positions of images not seen, nats; of all "
        f"{first['all']:.3f}:", "", f"| share chosen | {LEARNED} | {SURE} |", "|---|---|---|",
        *(f"| {row['share']:.0%} | {row[LEARNED]:.4f} | {row[SURE]:.4f} |" for row in result["changes"]), "",
        f"{result['seeds']} x {result['images']} samples:", "",
        "| sampler | T | threshold | full passes | FID-own | NLL of tokens |", "|---|---|---|---|---|---|",
        *(f"| {row['name']} | {row['T']} | {row['threshold'] or ''} | {row['passes']:.2f} | {row['fid']:.2f} "
          f"({min(row['fids']):.2f} to {max(row['fids']):.2f}) | {row['nll']:.3f} |" for row in result["lines"]),
        "", f"`{result['command']}`, {result['machine']}, {result['date']}", "",
    ]  # fmt: skip
    stem.with_suffix(".md").write_text("\n".join(text))
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in result["lines"]:
        curves.setdefault(row["name"], []).append((row["passes"], row["fid"]))
    title = f"{run['name']}, step {run['step']}, {options.order} order"
    draw_curve(curves, stem.with_suffix(".png"), "full passes an image", "FID-own", title)
    print("\n".join(text))


def _command() -> str:
    """As it was given, the files of this machine left out."""
    files = {"--learn": "SHARDS", "--real": "SHARDS", "--space": "RUN", "--out": "FOLDER"}
    told, before = ["python", "benchmarks/stopping.py", "RUN"], ""
    for text in sys.argv[2:]:
        told.append(files.get(before, text))
        before = text
    return " ".join(told)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of MaskGIT or MAGE")
    parser.add_argument("--learn", required=True, help="shards of images to learn the rule from")
    parser.add_argument("--real", required=True, help="shards of other real images")
    parser.add_argument("--space", type=Path, required=True, help="a run whose encoder's features are compared")
    parser.add_argument("--max-images", type=int, default=3000, help="of either shards for the filter (default 3000)")
    parser.add_argument("--max-real", type=int, help="use so many real images at most")
    parser.add_argument("--delta", type=float, default=0.1, help="change that counts as settled, nats (default 0.1)")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 8, 12, 16], help="T (default 4 6 8 12 16)")
    parser.add_argument("--stop", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9], help="of the learned rule")
    parser.add_argument("--sure", type=float, nargs="+", default=[0.03, 0.05, 0.07, 0.1], help="of the other")
    parser.add_argument("--order", choices=["confidence", "random", "halton"], default="random")
    parser.add_argument("--num", type=int, default=1000, help="images of each seed (default 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="(default 3)")
    parser.add_argument("--batch-size", type=int, default=100, help="images at once (default 100)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
