"""From runs to what is published: a table in markdown, and the curves of the loss as a picture."""

from __future__ import annotations

from typing import Any

from PIL import Image

from pretrain.tracking.charts import Point, Scale, smooth, ticks
from pretrain.tracking.pen import Pen

Rows = dict[str, dict[str, Any]]

_HEAD = ("", "steps", "loss: first, last", "before the cutoff", "highest after", "jump", "back after",
         "kNN, %", "linear, %", "own head, %")  # fmt: skip
_CELL, _COLUMNS, _GROUND = (560, 340), 2, (255, 255, 255)
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 44, 40  # around the curve in its cell
_RAW, _LINE, _EVENT, _RULE = (12, 107, 102, 70), (12, 107, 102, 255), (179, 84, 30, 255), (126, 126, 126, 60)


def table(rows: Rows, facts: dict[str, Any]) -> str:
    """Everything but the curves, as markdown."""
    lines = [f"# iLLaMA, every variant trained: {facts['data']}", "",
             "Losses are of different things and no comparison. In brackets: the untrained encoder.", "",
             *_rows(_HEAD, [_cells(row) for row in rows.values()]), "",
             *(f"- **{row['title']}**: {row['said']}{_at_once(row)}" for row in rows.values() if row["said"]), "",
             "Rank of the maps of attention, means over heads and images. In brackets: uniform attention under the "
             "block's own mask.", ""]  # fmt: skip
    most = max(len(row["attention"]) for row in rows.values())
    ranks = [[f"{block['rank']:.1f} ({block['mask_alone']})" for block in row["attention"]] for row in rows.values()]
    titled = [[row["title"], *found] for row, found in zip(rows.values(), ranks, strict=True)]
    lines += _rows(["", *(f"block {index}" for index in range(most))], titled)
    fixed = ", ".join(f"{name} {rank}" for name, rank in next(iter(rows.values()))["baselines"].items())
    lines += ["", f"Baselines of that rank: {fixed}.", "", f"All: `{' '.join(facts['same'])}`, and by itself each:", ""]
    lines += [f"- {row['title']}: `{' '.join([row['config'], *row['settings']])}`" for row in rows.values()]
    return "\n".join([*lines, "", f"`{facts['command']}`, {facts['date']}, {facts['machine']}"]) + "\n"


def picture(rows: Rows, losses: dict[str, list[Point]]) -> Image.Image:
    """A curve of each one's loss, (step, loss) points, with the cutoff in it."""
    width, height = _CELL[0] * _COLUMNS, _CELL[1] * -(-len(rows) // _COLUMNS)
    pen = Pen((width, height))
    for number, (name, row) in enumerate(rows.items()):
        _curve(pen, row, losses[name], number % _COLUMNS * _CELL[0], number // _COLUMNS * _CELL[1])
    sheet, drawn = Image.new("RGB", (width, height), _GROUND), pen.picture()
    sheet.paste(drawn, mask=drawn)
    return sheet


def _rows(head: tuple[str, ...] | list[str], cells: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _cells(row: dict[str, Any]) -> list[str]:
    jump, loss = row["jump"], row["loss"]
    cells = [row["title"], f"{row['steps']:,}", f"{loss['first']:.3f}, {loss['last']:.3f}"]
    if jump is None:
        cells += ["no soft mask", "", "", ""]
    else:
        size = f"{100 * jump['share']:+.1f} %"
        back = "not" if jump["back_after"] is None else f"{jump['back_after']} steps"
        cells += [f"{jump['before']:.4f}", f"{jump['highest']:.4f}"]
        cells += [size, back] if jump["clear"] else [f"none ({size})", ""]
    return cells + [_score(row["features"], key) for key in ("knn", "linear", "head")]


def _score(features: dict[str, Any], key: str) -> str:
    if key not in features["trained"]:
        return ""
    return f"{100 * features['trained'][key]:.1f} ({100 * features['untrained'][key]:.1f})"


def _at_once(row: dict[str, Any]) -> str:
    """A sentence, where it was measured."""
    if row["same_weights"] is None:
        return ""
    before, after = row["same_weights"]
    return (
        f" With the weights of the step before, the loss of {before['images']:,} training images is "
        f"{before['loss']:.4f} at alpha {before['alpha']:g} and {after['loss']:.4f} at alpha {after['alpha']:g}, "
        f"{100 * (after['loss'] / before['loss'] - 1):+.1f} %; {100 * before['right']:.1f} and "
        f"{100 * after['right']:.1f} % of them are right."
    )


def _curve(pen: Pen, row: dict[str, Any], points: list[Point], left: int, top: int) -> None:
    jump = row["jump"]
    shown = [value for _, value in points[len(points) // 20 :]]  # the first fall would flatten the rest
    room = 0.05 * (max(shown) - min(shown))
    x = Scale(0, points[-1][0], left + _LEFT, left + _CELL[0] - _RIGHT)
    y = Scale(min(shown) - room, max(shown) + room, top + _CELL[1] - _BOTTOM, top + _TOP)
    for value in ticks(y.low, y.high, 4):
        pen.line([(x.start, y.at(value)), (x.end, y.at(value))], _RULE, 1)
        pen.text(x.start - 8, y.at(value), f"{value:.4g}", 14, "rm")
    for step in ticks(0, x.high, 4):
        pen.text(x.at(step), y.start + 8, f"{step:,.0f}", 14, "ma")
    cut = jump["step"] if jump else points[-1][0] + 1
    parts = [[p for p in points if p[0] < cut], [p for p in points if p[0] >= cut]]  # smoothed apart: a jump stays one
    for part in filter(None, parts):
        for line, colour, thick in ((part, _RAW, 1), (smooth(part, sharp_start=True), _LINE, 2)):
            pen.line([(x.at(a), max(y.at(b), y.end)) for a, b in line], colour, thick)
    if jump:
        pen.line([(x.at(cut), y.end), (x.at(cut), y.start)], _EVENT, 2)
        said = f"{100 * jump['share']:+.1f} %" if jump["clear"] else "no jump"
        pen.text(x.at(cut) + 8, y.end, f"alpha 1 to 0: {said}", 15)
    pen.text(x.start, top + 12, f"{row['title']}: loss over steps", 18)
