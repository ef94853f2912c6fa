"""What ReCAP's local steps are worth: images of one run by the ordinary sampler and by ReCAP, against real ones.

    python benchmarks/generation.py runs/maskgit_cifar --space runs/vit_cifar_supervised --real 'val/*.tar'

Every sampler makes the same images: number, seed and class alike. The ordinary one takes T steps, and as many as ReCAP
takes full ones, F; ReCAP, and a joint sampler where one is given, takes T of which F are full (u = 1; P = 0, and
P = T / 2). The gap is what quality F steps lack beside T, and the goal is that local steps recover half of it, by the
distance between features. Where more steps are no better there is no gap to recover. Figures are means over seeds, with
the least and the greatest.

Writes generation-NAME.json, .md and .png to --out, NAME being the run's: the picture has quality over the arithmetic of
all passes. With 3 x 1,000 images of a small model half an hour on one thread of a CPU."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.machine import machine, versions  # noqa: E402
from masking.recap import Plan, decoding_counts  # noqa: E402
from pretrain.data.evaluation_batches import evaluation_batches  # noqa: E402
from pretrain.data.shards import open_shards  # noqa: E402
from pretrain.data.sources import as_pattern  # noqa: E402
from pretrain.evaluation.features import Extracted  # noqa: E402
from pretrain.generate.curve import draw_curve  # noqa: E402
from pretrain.generate.feature_space import FeatureSpace, own_space  # noqa: E402
from pretrain.generate.generate import Generated, Generator, generate  # noqa: E402
from pretrain.generate.joint import Joint  # noqa: E402
from pretrain.generate.likelihood import token_nll  # noqa: E402
from pretrain.generate.sampling import Sampling  # noqa: E402
from pretrain.generate.score import score  # noqa: E402
from pretrain.tracking.progress import Progress  # noqa: E402

FIGURES = ("fid", "precision", "recall", "accuracy", "nll")
GOAL = 0.5


@dataclass
class Line:
    """One sampler: its plan, and its figures, one a seed."""

    plan: Plan
    name: str  # of its curve
    joint: Joint | None = None  # what takes local steps in ReCAP's place
    full: int = 0
    cost: float = 0.0  # of all passes, in full ones
    seconds: list[float] = field(default_factory=list)  # an image
    found: list[dict[str, float]] = field(default_factory=list)

    def mean(self, figure: str) -> float:
        return statistics.mean(one[figure] for one in self.found)


def main() -> int:
    """Generates, compares, prints and writes; returns 1 where less than half of a gap was recovered."""
    options = _options()
    torch.set_num_threads(options.threads)
    generator = Generator.of(options.run, device=options.device)
    space = own_space(options.space, device=options.device)
    real = read_real(generator, space, options)
    joint = None if options.joint is None else Joint.of(options.joint, device=options.device)
    lines = _lines(options.steps, generator.num_positions, joint)
    with Progress(len(lines) * options.seeds * options.num, "images", "generating") as progress:
        for line in lines:
            for seed in range(options.seeds):
                measure(line, seed, generator, space, real, options)
                progress.advance(options.num)
    recovered = [_recovered(line, lines) for line in lines if line.plan.local]
    result = {
        "command": _command(sys.argv[1:]),
        "date": date.today().isoformat(),
        "machine": machine(options.device),
        "versions": versions(),
        "run": {"name": generator.loaded.config.name, "step": generator.loaded.step, "weights": generator.loaded.which},
        "space": space.name,
        "real_images": len(real.features),
        "images": options.num,
        "seeds": options.seeds,
        "lines": [_row(line) for line in lines],
        "recovered": recovered,
        "fit": _fit(generator, options),
    }
    _write(result, lines, options)
    return int(any(row["share"] is not None and row["share"] < GOAL for row in recovered))


def measure(
    line: Line, seed: int, generator: Generator, space: FeatureSpace, real: Extracted, options: argparse.Namespace
) -> None:
    """Adds to line what it makes with one seed."""
    sampling = Sampling(
        line.plan, order=options.order, choice_temperature=options.choice_temperature,
        diffusion_steps=options.diffusion_steps, seed=seed,
    )  # fmt: skip
    classes = generator.backbone.classes
    labels = None if classes is None else torch.arange(options.num) % classes
    generator = replace(generator, joint=line.joint)
    made = generate(generator, sampling, options.num, labels=labels, batch_size=options.batch_size)
    line.full, line.cost = made.facts["full_passes"], made.facts["cost_in_full_passes"]
    line.seconds.append(made.facts["seconds_per_image"])
    said = score(made.images, labels, real, space)
    figures = {name: float(said[name]) for name in FIGURES if name in said}
    line.found.append(figures | likelihood(generator, made, options.batch_size))


def likelihood(generator: Generator, made: Generated, batch_size: int) -> dict[str, float]:
    if generator.backbone.num_codes is None:
        return {}
    labels = None if generator.backbone.classes is None else made.labels
    found = token_nll(generator.backbone, generator.objective, made.tokens, labels, batch_size=batch_size)
    return {"nll": float(found.mean())}


def _lines(steps: list[int], num_positions: int, joint: Joint | None) -> list[Line]:
    """The ordinary sampler of all numbers of steps that are compared, ReCAP's plans, and the joint sampler's."""
    recap = [Line(Plan(count, first, 1), f"ReCAP, u=1, {name}") for count in steps
             for first, name in ((0, "P=0"), (count // 2, "P=T/2"))]  # fmt: skip
    base = {*steps, *(_full(line.plan, num_positions) for line in recap)}
    if joint is not None:
        recap += [Line(line.plan, line.name.replace("ReCAP", "joint sampler"), joint) for line in recap]
    return [*(Line(Plan(count), "every step full") for count in sorted(base)), *recap]


def _full(plan: Plan, num_positions: int) -> int:
    return len(plan.groups(decoding_counts(num_positions, plan.steps)))


def read_real(generator: Generator, space: FeatureSpace, options: argparse.Namespace) -> Extracted:
    data = generator.loaded.config.data
    batches = evaluation_batches(open_shards(as_pattern(options.real)), data, 64, max_images=options.max_real)
    with Progress(batches.num_images, "images", "reading real images") as progress:
        return space.of(batches, on_progress=progress.advance)


def _fit(generator: Generator, options: argparse.Namespace) -> dict[str, float]:
    """What the model makes of tokens of real images that it did not see, nats a token, at three shares hidden; and what
    the frequencies of codes in these very images would give."""
    backbone = generator.backbone
    if backbone.num_codes is None:
        return {}
    batches = evaluation_batches(open_shards(as_pattern(options.real)), generator.pixels, 64, max_images=options.num)
    pairs = [(backbone.tokenizer.tokens(images), labels) for images, labels in batches]
    tokens, labels = (torch.cat(part) for part in zip(*pairs))
    told = None if backbone.classes is None else labels
    share = torch.bincount(tokens.flatten(), minlength=backbone.num_codes) / tokens.numel()
    found = {"unigram": float(-(share * share.clamp(min=1e-12).log()).sum())}
    for hidden in (0.25, 0.5, 0.75):
        nll = token_nll(backbone, generator.objective, tokens, told, hidden=hidden, batch_size=options.batch_size)
        found[f"{hidden:g} hidden"] = float(nll.mean())
    return found


def _recovered(line: Line, lines: list[Line]) -> dict[str, Any]:
    """Which share of the gap local steps make good."""
    base = {other.plan.steps: other.mean("fid") for other in lines if not other.plan.local}
    gap = base[line.full] - base[line.plan.steps]
    won = base[line.full] - line.mean("fid")
    return {
        "sampler": line.name.partition(",")[0], "T": line.plan.steps, "P": line.plan.full_first, "full": line.full,
        "fid_of_T": base[line.plan.steps],
        "fid_of_full": base[line.full], "fid_of_recap": line.mean("fid"), "gap": gap,
        "share": won / gap if gap > 0 else None,
    }  # fmt: skip


def _row(line: Line) -> dict[str, Any]:
    figures = {
        name: {"mean": line.mean(name), "low": min(one[name] for one in line.found),
               "high": max(one[name] for one in line.found)}
        for name in line.found[0]
    }  # fmt: skip
    plan = {"T": line.plan.steps, "P": line.plan.full_first, "u": line.plan.local}
    seconds = statistics.median(line.seconds)
    known = {"name": line.name, "plan": plan, "full": line.full, "cost": line.cost, "seconds_per_image": seconds}
    return {**known, **figures}


def _write(result: dict[str, Any], lines: list[Line], options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"generation-{result['run']['name']}" + (f"-{options.order}" if options.order else "")
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    text = _table(result)
    (options.out / f"{name}.md").write_text(text)
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        curves.setdefault(line.name, []).append((line.cost, line.mean("fid")))
    title = f"{result['run']['name']}, step {result['run']['step']}: quality and what it costs"
    title += f", {options.order} order" if options.order else ""
    draw_curve(curves, options.out / f"{name}.png", "all passes, in full ones", result["space"], title, log_x=True)
    print(text)


def _table(result: dict[str, Any]) -> str:
    """The Markdown page."""
    run = result["run"]
    figures = [name for name in FIGURES if name in result["lines"][0]]
    lines = [
        f"# {run['name']}, step {run['step']}: ReCAP beside the ordinary sampler",
        "",
        f"{result['seeds']} x {result['images']} images, the same of every sampler, against {result['real_images']} "
        f"real ones; {result['space']}; means over seeds, and from the least to the greatest.",
        "",
        f"| sampler | T | P | u | full passes | cost | {' | '.join(figures)} | ms an image |",
        "|---" * (7 + len(figures)) + "|",
    ]
    for row in result["lines"]:
        plan = row["plan"]
        cells = [f"{row[name]['mean']:.4g} ({row[name]['low']:.4g} to {row[name]['high']:.4g})" for name in figures]
        what = [row["name"].partition(",")[0], plan["T"], plan["P"], plan["u"], row["full"], f"{row['cost']:.2f}"]
        lines.append(f"| {' | '.join(map(str, [*what, *cells]))} | {1000 * row['seconds_per_image']:.1f} |")
    lines += ["", "| sampler | distance of T full steps | of as many as it takes | its own | of the gap recovered |",
              "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {row['sampler']}, T={row['T']}, P={row['P']}, u=1 | {row['fid_of_T']:.4g} | "
        f"{row['fid_of_full']:.4g} ({row['full']}) | {row['fid_of_recap']:.4g} | {_percent(row['share'])} |"
        for row in result["recovered"]
    ]
    if result["fit"]:
        told = ", ".join(f"{name} {value:.3f}" for name, value in result["fit"].items())
        lines += ["", f"Tokens of real images that the model does not see, nats a token: {told}."]
    return "\n".join([*lines, "", f"`{result['command']}`, {result['machine']}, {result['date']}", ""])


def _command(arguments: list[str]) -> str:
    """As it was given, the files of this machine left out."""
    told, files = ["python", "benchmarks/generation.py"], {"--space": "RUN", "--joint": "RUN"}
    files |= {"--real": "SHARDS", "--out": "FOLDER"}
    for before, text in zip(["run", *arguments], arguments):
        told.append("RUN" if before == "run" else files.get(before, text))
    return " ".join(told)


def _percent(share: float | None) -> str:
    return "no gap" if share is None else f"{100 * share:.0f} %"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of MaskGIT, MAGE or MAR")
    parser.add_argument("--space", type=Path, required=True, help="a run whose encoder's features are compared")
    parser.add_argument("--joint", type=Path, help="a joint sampler of that run, to be compared as well")
    parser.add_argument("--real", required=True, help="shards of real images")
    parser.add_argument("--max-real", type=int, help="use so many of them at most")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16], help="T (default 8 16)")
    parser.add_argument("--num", type=int, default=1000, help="images of each seed (default 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="(default 3)")
    parser.add_argument("--batch-size", type=int, default=100, help="images at once (default 100)")
    parser.add_argument("--order", choices=["confidence", "random", "halton"], help="(default: the model's usual one)")
    parser.add_argument("--choice-temperature", type=float, default=4.5, help="(default 4.5)")
    parser.add_argument("--diffusion-steps", type=int, default=100, help="of MAR's head (default 100)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU operation")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
