"""From runs to what is published: numbers by arm, a table in markdown, and the curves as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.claims.arms import Claim
from benchmarks.claims.statistics_of_seeds import interval, rauc, steps_to, verdict

Runs = dict[str, dict[int, dict[str, Any]]]
SCORES = ("loss", "knn", "linear", "train_s")
_COLORS = ("#444444", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")


def summary(claim: Claim, runs: Runs) -> dict[str, Any]:
    """By arm: its runs, their means, and over the seeds it shares with the baseline the differences, RAUC and the steps
    to the baseline's last kNN (of the seeds that reach it)."""
    base, rows = runs[claim.baseline], {}
    for arm, by_seed in runs.items():
        if not by_seed:
            continue
        found = list(by_seed.values())
        row: dict[str, Any] = {"runs": by_seed, "mean": {key: interval([run[key] for run in found]) for key in SCORES}}
        shared = [seed for seed in by_seed if seed in base]
        if arm != claim.baseline and shared:
            row["difference"] = {
                key: interval([by_seed[seed][key] - base[seed][key] for seed in shared]) for key in SCORES
            }
            row["verdict"] = {key: verdict(row["difference"][key]) for key in ("knn", "linear")}
            areas = [rauc(by_seed[seed]["curve"], base[seed]["curve"]) for seed in shared]
            row["rauc"] = interval(areas) if None not in areas else None
            reached = [steps_to(by_seed[seed]["curve"], base[seed]["curve"][-1][1]) for seed in shared]
            row["steps_to_target"] = reached
        rows[arm] = row
    return rows


def table(claim: Claim, rows: dict[str, Any]) -> str:
    """The same as markdown; behind a number its difference to the baseline."""
    head = ["arm", "loss", "kNN, %", "linear, %", "training, s", "RAUC", "steps to target", "kNN", "linear"]
    lines = [f"# {claim.title}", "", f"In brackets: less `{claim.baseline}`, seed by seed, 95 % interval.", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm, row in rows.items():
        cells = [f"`{arm}`"]
        for key in SCORES:
            digits = 3 if key == "loss" else 1
            less = f" ({_words(row['difference'][key], digits, '+')})" if "difference" in row else ""
            cells.append(f"{row['mean'][key]['mean']:.{digits}f}{less}")
        area = row.get("rauc")
        cells.append(_words(area, 2) if area else "-")
        reached = row.get("steps_to_target")
        cells.append(", ".join("never" if step is None else f"{step:.0f}" for step in reached) if reached else "-")
        cells += [row["verdict"][key] if "verdict" in row else "-" for key in ("knn", "linear")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(claim: Claim, runs: Runs, path: Path) -> None:
    """Writes a PNG of kNN over steps, the mean of the seeds, one line an arm."""
    curves = {arm: _mean_curve(list(by_seed.values())) for arm, by_seed in runs.items() if by_seed}
    points = [point for curve in curves.values() for point in curve]
    last, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    if high - low < 1:  # percent: less would draw noise large
        low, high = low - 0.5, high + 0.5
    image = Image.new("RGB", (900, 480), "white")
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return 60 + 660 * x / (last or 1), 430 - 380 * (y - low) / ((high - low) or 1)

    draw.text((60, 14), f"{claim.title}: kNN in percent over steps, mean of the seeds", fill="black")
    for part in range(5):
        y, x = low + (high - low) * part / 4, last * part / 4
        draw.line([at(0, y), at(last, y)], fill="#dddddd")
        draw.text((18, at(0, y)[1] - 6), f"{y:.1f}", fill="black")
        draw.text((at(x, low)[0] - 10, 438), f"{x:.0f}", fill="black")
    for number, (arm, curve) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        draw.line([at(x, y) for x, y in curve], fill=color, width=2)
        draw.line([(735, 60 + 20 * number), (760, 60 + 20 * number)], fill=color, width=3)
        draw.text((768, 54 + 20 * number), arm, fill="black")
    image.save(path)


def _mean_curve(found: list[dict[str, Any]]) -> list[tuple[float, float]]:
    columns = zip(*(run["curve"] for run in found))
    return [(column[0][0], sum(score for _, score in column) / len(column)) for column in columns]


def _words(value: dict[str, float | None], digits: int, sign: str = "") -> str:
    half = value["plus_minus"]
    return f"{value['mean']:{sign}.{digits}f}" + ("" if half is None else f" +- {half:.{digits}f}")
