"""The picture of an evaluation: a group of bars a method, a bar an encoder, and a line where guessing would end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.tracking.charts import Scale, ticks
from pretrain.tracking.panels import save
from pretrain.tracking.pen import INK, ORANGE, TEAL, TEXT_PX, Pen, length

Results = Mapping[str, Mapping[str, Any]]
METHODS = {
    "head": "own head",
    "knn": "kNN",
    "linear": "linear probe",
    "linear-sgd": "linear probe, as published",
    "attentive": "attentive probe",
    "lowshot_1%": "linear probe, 1 % of labels",
    "lowshot_10%": "linear probe, 10 % of labels",
}
_WIDTH, _MARGIN, _ROOM = 1520, 40, 130  # _ROOM: for the figure behind the longest bar
_TOP, _BOTTOM, _HEADING, _ROW, _GAP = 112, 56, 46, 40, 18
_LABEL = 560  # what names may take
_COLOURS = ((*TEAL, 255), (*INK[:3], 170))  # trained; drawn weights, to be above


def evaluation_picture(results: Results, path: Path) -> Path:
    """Writes the picture of results, a name an encoder and what `evaluate` said of it, to path, a PNG, and returns
    path. Names are cut in their middle where they are too long."""
    groups = [(key, words) for key, words in METHODS.items() if any(key in row for row in results.values())]
    rows = {key: [(name, row) for name, row in results.items() if row.get(key) is not None] for key, _ in groups}
    height = _TOP + _BOTTOM + sum(_HEADING + _GAP + _ROW * len(rows[key]) for key, _ in groups)
    names = {name: fitting(name, _LABEL) for name in results}
    left = _MARGIN + max(length(name) for name in names.values()) + 24
    x = Scale(0.0, 1.0, left, _WIDTH - _ROOM)
    pen = Pen((_WIDTH, height))
    pen.text(_MARGIN, 18, "Frozen features: share of the test images classified correctly", size=30)
    pen.line([(_MARGIN, 80), (_MARGIN + 34, 80)], (*ORANGE, 255), 4)
    pen.text(_MARGIN + 46, 80, _chance_words(results), anchor="lm")
    _grid(pen, x, height)
    at = float(_TOP)
    for key, words in groups:
        pen.text(_MARGIN, at + _HEADING / 2, words, size=TEXT_PX + 2, anchor="lm")
        at += _HEADING
        for name, row in rows[key]:
            pen.text(left - 20, at + _ROW / 2, names[name], anchor="rm")
            _bar(pen, x, at, row, key, untrained=name.endswith("untrained"))
            at += _ROW
        at += _GAP
    return save(pen.picture(), path)


def fitting(name: str, room: float, size: int = TEXT_PX) -> str:
    """name, or its two ends where it is wider than room, pixels."""
    kept = len(name)
    text = name
    while length(text, size) > room:
        kept -= 1
        text = f"{name[: kept // 2]}...{name[len(name) - (kept - kept // 2) :]}"
    return text


def _bar(pen: Pen, x: Scale, top: float, row: Mapping[str, Any], key: str, *, untrained: bool) -> None:
    share, middle = float(row[key]), top + _ROW / 2
    pen.box(x.start, top + 6, max(x.at(share), x.start + 2), top + _ROW - 6, _COLOURS[untrained])
    end, spread = x.at(share), row.get(f"{key}_std")
    if spread is not None:  # between the draws of low-shot
        low, end = x.at(max(share - spread, 0)), max(x.at(min(share + spread, 1)), end)
        pen.line([(low, middle), (end, middle)], INK, 3)
        for place in (low, end):
            pen.line([(place, middle - 7), (place, middle + 7)], INK, 3)
    chance = x.at(float(row["chance"]))
    pen.line([(chance, top), (chance, top + _ROW)], (*ORANGE, 255), 4)
    pen.text(max(end, chance) + 12, middle, f"{100 * share:.1f} %", anchor="lm")


def _grid(pen: Pen, x: Scale, height: int) -> None:
    for value in ticks(0.0, 1.0):
        pen.line([(x.at(value), _TOP), (x.at(value), height - _BOTTOM)], (*INK[:3], 60), 2)
        pen.text(x.at(value), height - _BOTTOM + 10, f"{100 * value:.0f} %", anchor="ma")


def _chance_words(results: Results) -> str:
    """What the line of chance is, and how many images stand behind the bars."""
    chances = {round(100 * float(row["chance"]), 1) for row in results.values()}
    images = sorted({int(row["val_images"] or row.get("train_images", 0)) for row in results.values()})
    value = f" {chances.pop()} %" if len(chances) == 1 else ""
    return f"always the commonest class{value}; {' or '.join(map(str, images))} test images"
