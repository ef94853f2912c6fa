"""The curves of a claim's arms as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.claims.arms import Claim
from benchmarks.claims.result import Runs

_COLORS = ("#444444", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")


def picture(claim: Claim, runs: Runs, path: Path) -> None:
    """Writes a PNG of kNN over steps, the mean of the seeds, one line an arm, and where each seed ended as a dot."""
    curves = {arm: _mean_curve(list(by_seed.values())) for arm, by_seed in runs.items() if by_seed}
    ends = {arm: [run["curve"][-1] for run in runs[arm].values()] for arm in curves}
    points = [point for found in (*curves.values(), *ends.values()) for point in found]
    last, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    if high - low < 1:  # percent: less would draw noise large
        low, high = low - 0.5, high + 0.5
    image = Image.new("RGB", (900, 480), "white")
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return 60 + 660 * x / (last or 1), 430 - 380 * (y - low) / ((high - low) or 1)

    draw.text(
        (60, 14), f"{claim.title}: kNN in percent over steps, mean of the seeds; dots: each seed's end", fill="black"
    )
    for part in range(5):
        y, x = low + (high - low) * part / 4, last * part / 4
        draw.line([at(0, y), at(last, y)], fill="#dddddd")
        draw.text((18, at(0, y)[1] - 6), f"{y:.1f}", fill="black")
        draw.text((at(x, low)[0] - 10, 438), f"{x:.0f}", fill="black")
    for number, (arm, curve) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        draw.line([at(x, y) for x, y in curve], fill=color, width=2)
        for x, y in (at(*end) for end in ends[arm]):
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], outline=color)
        draw.line([(735, 60 + 20 * number), (760, 60 + 20 * number)], fill=color, width=3)
        draw.text((768, 54 + 20 * number), arm, fill="black")
    image.save(path)


def _mean_curve(found: list[dict[str, Any]]) -> list[tuple[float, float]]:
    columns = zip(*(run["curve"] for run in found))
    return [(column[0][0], sum(score for _, score in column) / len(column)) for column in columns]
