"""One self-contained report.html of a run: numbers, curves, pictures, history, config, environment. No network."""

from __future__ import annotations

import os
import time
from html import escape
from pathlib import Path

from pretrain.tracking.charts import Series, chart, short, smooth
from pretrain.tracking.live import duration
from pretrain.tracking.report_curves import curves, legend
from pretrain.tracking.report_pictures import (
    alignment,
    attention,
    heterogeneity,
    masks,
    predicts,
    reconstructions,
    samples,
)
from pretrain.tracking.report_segments import segmentation
from pretrain.tracking.report_tables import bad_samples, config_tables, environment_tables, history
from pretrain.tracking.run_data import RunData, load_run

_HERE = Path(__file__).parent
_ABOUT_ATTENTION = (
    "How many singular values of a map of attention make up 80 % of their sum. A mask moves that figure by itself: "
    "read it against uniform attention under the same mask, not against another encoder's alone."
)
_ABOUT_ALIGNMENT = (
    "What the student's layers give to each level of the teacher. A level's adaptor takes up any scale, so rows are "
    "shares: their sizes sum to 1, and the colour is the sign."
)
_ABOUT_HETEROGENEITY = (
    "What hidden tokens are like in the blocks that they go through: H high in early blocks and falling with depth is "
    "what MTO-R is after. Positions alone make hidden tokens differ; rings are what is left without them."
)
_ABOUT_SEGMENTATION = (
    "Intersection over union of true and predicted pixels, of whole validation images at the size of their maps. "
    "mIoU is the mean over the classes that are there."
)
_SCORES = (("head", "Own head", "third"), ("knn", "kNN", "first"), ("linear", "Linear probe", "second"))


def write_report(run_dir: str | Path) -> Path:
    """Writes report.html into run_dir, which may belong to a run that is still going on; returns its path."""
    run = load_run(run_dir)
    path = run.run_dir / "report.html"
    temporary = path.with_name("report.html.tmp")
    temporary.write_text(_page(run), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _page(run: RunData) -> str:
    sections = [
        (*_about_pictures(run), reconstructions(run)),
        ("Samples", "Images that the model generates: the same numbers, and classes, at several steps.", samples(run)),
        ("Curves", "Dotted lines mark where an attempt went on from a checkpoint.", curves(run)),
        ("Segmentation", _ABOUT_SEGMENTATION, segmentation(run)),
        ("Frozen features", _about_features(run), "" if segmentation(run) else _features(run)),
        ("Attention", _ABOUT_ATTENTION, attention(run)),
        ("Alignment", _ABOUT_ALIGNMENT, alignment(run)),
        ("Hidden tokens", _ABOUT_HETEROGENEITY, heterogeneity(run)),
        ("Masks", "Filled squares are what the encoder sees.", masks(run)),
        ("History", "Every attempt at this run, and what became of it.", history(run)),
        ("Bad samples", "Images that could not be used: they kept their place and weighed nothing.", bad_samples(run)),
        ("Config", "Coloured values differ from the defaults.", config_tables(run)),
        ("Environment", "Where the newest attempt ran.", environment_tables(run)),
    ]  # fmt: skip
    body = "".join(f"<section><h2>{title}</h2><p>{lead}</p>{html}</section>" for title, lead, html in sections if html)
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)} - Lacuna</title><style>{(_HERE / 'report.css').read_text()}</style></head>"
        f"<body><main>{_header(run)}{body}<footer>Written by lacuna report on {made}. The numbers are in metrics.jsonl "
        "and evaluations.jsonl beside this page.</footer></main>"
        f"<script>{(_HERE / 'report.js').read_text()}</script></body></html>"
    )


def _about_features(run: RunData) -> str:
    words = "What simple classifiers make of the encoder's features; step 0 is the untrained encoder."
    if run.evaluated("head"):
        words += " Own head is the accuracy of the classifier that is trained with it."
    return words


def _about_pictures(run: RunData) -> tuple[str, str]:
    """(title, lead) of the reconstructions, or of what there is in their place."""
    if not predicts(run):
        return "Images", "What the encoder sees, and all there is; validation images, where the run has any."
    words = "The same images at several steps, visible patches pasted in; validation images, where the run has any."
    if run.config.get("mask") is None:
        words = "The same images at several steps, made of their tokens; validation images, where the run has any."
    if run.config.get("objective", {}).get("norm_pixels"):
        words += " The model predicts normalised pixels, so hidden patches are given their true mean and contrast back."
    return "Reconstructions", words


def _header(run: RunData) -> str:
    backbone, data = run.config.get("backbone", {}), run.config.get("data", {})
    size = "x".join(str(part) for part in data.get("image_size", []))
    kind = str(backbone.get("type", "ViT")).rpartition(":")[2].removesuffix("Config")
    named = f"-{str(backbone['size']).capitalize()}" if "size" in backbone else ""
    patch = f"/{backbone['patch_size']}" if "patch_size" in backbone else ""
    what = f"{kind}{named}{patch} on {size} pixels"
    scores, training = _scores(run), [card for card in _training(run) if card]
    rows = [scores + training[:1], training[1:]] if scores else [training]
    numbers = "".join(f'<div class="numbers">{"".join(row)}</div>' for row in rows if row)
    return (
        f'<header><p class="kind">Lacuna pretraining run</p><h1>{escape(run.name)}</h1>'
        f'<p class="lead">{escape(what)}. {_status(run)}</p>{numbers}</header>'
    )


def _status(run: RunData) -> str:
    if not run.steps:
        return "No step has been logged yet."
    total = run.total_steps
    passes = run.steps[-1].get("epoch")
    length = f", {passes:.3g} passes over the data" if passes else ""
    if total is None or run.last_step >= total:
        return f"<strong>Finished</strong> after {run.last_step:,} steps{length}."
    ended = next((e for e in reversed(run.journal) if e.get("event") in ("started", "stopped")), {})
    state = "Stopped" if ended.get("event") == "stopped" else "Going on, or interrupted,"
    return f"<strong>{state} at step {run.last_step:,} of {total:,}</strong>{length}."


def _scores(run: RunData) -> list[str]:
    cards = []
    for key, name, _ in _SCORES:
        points = run.evaluated(key)
        if not points:
            continue
        (first_step, first), (last_step, last) = points[0], points[-1]
        more = f"at step {short(last_step)}"
        if first_step == 0 and last_step > 0:
            gain = 100 * (last - first)
            better = "more" if gain > 0 else "less"
            more = f'untrained {100 * first:.1f} %: <b class="{better}">{gain:+.1f} points</b>'
        cards.append(_number(f"{name} accuracy", f"{100 * last:.1f}<small> %</small>", more, "number main"))
    return cards


def _training(run: RunData) -> list[str]:
    if not run.steps:
        return []
    loss, rate, seconds = run.curve("loss"), run.images_per_s(), run.training_s()
    samples = run.steps[-1].get("samples")
    waits = run.curve("data_wait")
    skipped, bad = run.total("skipped"), run.total("bad")
    ends, kind = smooth(loss, sharp_start=True), "number main" if run.evaluations else "number"
    wait = f"{100 * sum(v for _, v in waits) / len(waits):.0f} % of the time waiting for data" if waits else ""
    return [
        _number("Loss", f"{ends[-1][1]:.3f}", f"began at {loss[0][1]:.3f}", kind) if loss else "",
        _number("Images seen", _grouped(samples), f"in {run.last_step:,} steps") if samples else "",
        _number("Images per second", _grouped(rate), wait) if rate else "",
        _number("Time in steps", duration(seconds), _attempts(run) + _memory(run)) if seconds else "",
        _number("Skipped steps", str(skipped), f"{bad} bad samples in {run.last_step:,} steps"),
    ]


def _attempts(run: RunData) -> str:
    number = sum(1 for e in run.journal if e.get("event") == "started")
    return "in one attempt" if number <= 1 else f"in {number} attempts"


def _memory(run: RunData) -> str:
    peak = max((value for _, value in run.curve("memory_gb")), default=0.0)
    return f", {peak:.3g} GB of memory at most" if peak else ""


def _grouped(value: float) -> str:
    """A number whose thousands can be told apart; small ones keep a digit behind the point."""
    return f"{value:,.1f}" if value < 100 and value != int(value) else f"{value:,.0f}"


def _number(label: str, value: str, more: str, kind: str = "number") -> str:
    parts = f'<div class="label">{label}</div><div class="value">{value}</div><div class="more">{more}</div>'
    return f'<div class="{kind}">{parts}</div>'


def _features(run: RunData) -> str:
    if not run.evaluations:
        return (
            '<p class="note">No evaluation has been made. Set evaluation.every_steps and data.val, or run '
            "<code>lacuna evaluate</code> on this run.</p>"
        )
    scores = [Series(name, run.evaluated(key), style, dots=True) for key, name, style in _SCORES]
    scores = [s for s in scores if s.points]
    chance = run.evaluated("chance")
    cards = []
    if scores:
        picture = chart("Accuracy", scores, percent=True, marks=run.resumes,
                        levels=[("commonest class", chance[-1][1])] if chance else [])  # fmt: skip
        cards.append(f'<div class="card"><h3>Accuracy {legend(scores)}</h3>{picture}</div>')
    ranks = run.evaluated("effective_rank")
    if ranks:
        picture = chart("Effective rank", [Series("rank", ranks, dots=True)], marks=run.resumes)
        note = "directions the features use"
        cards.append(f'<div class="card"><h3>Effective rank <small>{note}</small></h3>{picture}</div>')
    return f'{_warnings(run)}<div class="charts">{"".join(cards)}</div>'


def _warnings(run: RunData) -> str:
    words = run.evaluations[-1].get("warnings")
    items = words if isinstance(words, list) else []
    return "".join(f'<p class="warn">{escape(str(item))}</p>' for item in items)
