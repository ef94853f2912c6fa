"""The report's curves: the loss, what the schedules did, and how fast it went."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

from pretrain.tracking.charts import Point, Series, chart, smooth
from pretrain.tracking.cutoff import cutoff_step, jump_at, words
from pretrain.tracking.run_data import RunData


def curves(run: RunData) -> str:
    """Cards of everything that was logged step by step, the loss first; or a sentence."""
    if not run.steps:
        return '<p class="note">No step has been logged yet; the curves begin with the first.</p>'
    loss, alpha = run.curve("loss"), run.curve("alpha")
    cutoff = cutoff_step(alpha)
    events = [] if cutoff is None else [(f"alpha {alpha[-1][1]:.3g} from step {cutoff:,} on", float(cutoff))]
    cards = [_loss_card(run, loss, events)] if loss else []
    plans = [
        ("Soft mask", "alpha", "how much later tokens count: 1 as without a mask"),
        ("Learning rate", "lr", ""),
        ("Gradient norm", "grad_norm", "before clipping"),
        ("Images per second", "images_per_s", "all processes"),
        ("Waiting for data", "data_wait", "share of a step's time"),
        ("Model FLOPs utilisation", "mfu", "of the hardware's peak"),
        ("Peak memory", "memory_gb", "gigabytes"),
    ]
    for title, key, note in plans:
        points = run.curve(key)
        if not points or (key == "memory_gb" and _flat(points)):  # then it is a number above
            continue
        series = [Series("raw", points, "faint"), Series(title, smooth(points, sharp_start=key == "grad_norm"))]
        if key in ("lr", "alpha"):
            series = [Series(title, points)]
        wide = key == "grad_norm" and _wide(points)
        percent = key in ("data_wait", "mfu")
        shown = events if key == "alpha" else []
        picture = chart(
            title, series, marks=run.resumes, events=shown, percent=percent, log_y=wide, from_zero=not wide
        )
        cards.append(f'<div class="card"><h3>{title} <small>{note}</small></h3>{picture}</div>')
    return f'{_jump(loss, alpha, cutoff)}<div class="charts">{"".join([*cards, *_hidden_tokens(run)])}</div>'


def legend(series: Sequence[Series]) -> str:
    """Names of the series beside their colours."""
    names = "".join(f'<span><i class="{s.style}"></i>{s.name}</span>' for s in series)
    return f'<span class="legend">{names}</span>'


def _hidden_tokens(run: RunData) -> list[str]:
    """What inspections follow of hidden tokens."""
    halves = [Series(f"{half} blocks", run.inspected(f"heterogeneity_{half}"), style, dots=True)
              for half, style in (("early", "first"), ("late", "second"))]  # fmt: skip
    norms = run.inspected("heterogeneity_token_norm")
    if not norms:
        return []
    unlike = chart("Hidden tokens' H", halves, marks=run.resumes)
    norm = chart("Norm of the mask token", [Series("norm", norms, dots=True)], marks=run.resumes)
    return [
        f'<div class="card"><h3>Hidden tokens\' H {legend(halves)}</h3>{unlike}</div>',
        f'<div class="card"><h3>Norm of the mask token</h3>{norm}</div>',
    ]


def _jump(loss: list[Point], alpha: list[Point], cutoff: int | None) -> str:
    """A paragraph on the loss where the mask set in; nothing where it did not, or not yet for long enough."""
    jump = None if cutoff is None else jump_at(loss, cutoff)
    if jump is None:
        return ""
    earlier = next(value for step, value in reversed(alpha) if step < jump.step)
    return f'<p class="note">{words(jump, (earlier, alpha[-1][1]))}</p>'


def _loss_card(run: RunData, loss: list[Point], events: Sequence[tuple[str, float]]) -> str:
    ends = [0, *(sum(at < step for at, _ in loss) for _, step in events), len(loss)]
    parts = [smooth(loss[start:end], sharp_start=True) for start, end in pairwise(ends)]  # a jump stays one
    series = [Series("raw", loss, "faint"), Series("loss", list(chain.from_iterable(parts)))]
    linear = chart("Loss", series, marks=run.resumes, events=events)
    if len(loss) < 50:
        return f'<div class="card"><h3>Loss</h3>{linear}</div>'
    log = chart("Loss", series, marks=run.resumes, events=events, log_x=True)
    return (
        '<div class="card swap"><input type="radio" name="loss-x" id="loss-a" checked>'
        '<input type="radio" name="loss-x" id="loss-b">'
        '<span class="choice"><label for="loss-a">steps</label> <label for="loss-b">log steps</label></span>'
        f'<h3>Loss</h3><div class="a">{linear}</div><div class="b">{log}</div></div>'
    )


def _flat(points: list[Point]) -> bool:
    values = [y for _, y in points]
    return max(values) <= 1.2 * min(values)


def _wide(points: list[Point]) -> bool:
    values = sorted(y for _, y in points)
    middle = values[len(values) // 2]
    return values[0] > 0 and values[-1] > 20 * middle
