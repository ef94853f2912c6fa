"""The picture of attention-map ranks: a line a block from its lowest head to its highest, the mean of the heads, and as
horizontal lines the ranks that nothing learnt has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.tracking.charts import Scale
from pretrain.tracking.panels import save
from pretrain.tracking.pen import INK, ORANGE, TEAL, TEXT_PX, Pen

NAME = "attention-rank"  # of the files in a run's directory: .json and .png
_TRAINED, _MASK = (*TEAL, 255), (*ORANGE, 255)
_SIZE = (1520, 840)
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 360, 120, 84  # the right margin names the horizontal lines


def attention_picture(results: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Writes the picture of results, a name an encoder and what `attention_rank` said of it, to path, a PNG, and
    returns path. The first is drawn in full, of the others the mean of the heads alone."""
    (name, first), *others = results.items()
    length, blocks = first["length"], first["blocks"]
    x = Scale(-0.5, len(blocks) - 0.5, _LEFT, _SIZE[0] - _RIGHT)
    y = Scale(0, length, _SIZE[1] - _BOTTOM, _TOP)
    pen = Pen(_SIZE)
    pen.text(_LEFT - 72, 18, f"Attention-map rank, {name}: {first['images']} images, {length} tokens", size=30)
    _frame(pen, x, y, len(blocks))
    _baselines(pen, y, first["baselines"])
    keys = [("mean of the heads, lowest to highest", _TRAINED), ("the block's mask alone", _MASK)]
    for other, result in others:
        _means(pen, result["blocks"], x, y, INK)
        keys.append((other, INK))
    for index, block in enumerate(blocks):
        _block(pen, x.at(index), y, block, half=0.3 * (x.at(1) - x.at(0)))
    _means(pen, blocks, x, y, _TRAINED)
    at = float(_LEFT)
    for words, colour in keys:
        pen.line([(at, 82), (at + 34, 82)], colour, 6)
        at += 46 + pen.text(at + 46, 68, words) + 40
    return save(pen.picture(), path)


def _frame(pen: Pen, x: Scale, y: Scale, num_blocks: int) -> None:
    pen.grid(x, y)
    every = -(-num_blocks // 16)
    for index in range(0, num_blocks, every):
        pen.text(x.at(index), _SIZE[1] - _BOTTOM + 12, str(index), anchor="ma")
    pen.text((x.start + x.end) / 2, _SIZE[1] - 32, "block", anchor="ma")


def _baselines(pen: Pen, y: Scale, baselines: Mapping[str, int]) -> None:
    right, lowest = _SIZE[0] - _RIGHT, float(_SIZE[1])
    for name, rank in sorted(baselines.items(), key=lambda item: item[1]):
        at = y.at(rank)
        pen.dashes(_LEFT, right, at)
        lowest = min(at, lowest - TEXT_PX - 6)  # names do not meet, where ranks are close
        pen.text(right + 14, lowest, f"{name} {rank}", anchor="lm")


def _block(pen: Pen, at: float, y: Scale, block: Mapping[str, Any], half: float) -> None:
    mask, heads = y.at(block["mask_rank"]), [y.at(rank) for rank in block["rank"]]
    pen.line([(at - half, mask), (at + half, mask)], _MASK, 6)
    pen.line([(at, min(heads)), (at, max(heads))], (*_TRAINED[:3], 110), 6)
    for head in heads:
        pen.dot(at, head, 5, (*_TRAINED[:3], 170))


def _means(pen: Pen, blocks: Sequence[Mapping[str, Any]], x: Scale, y: Scale, colour: tuple[int, ...]) -> None:
    places = [(x.at(index), y.at(sum(block["rank"]) / len(block["rank"]))) for index, block in enumerate(blocks)]
    pen.line(places, colour, 6)
    for place in places:
        pen.dot(*place, 9, colour)
