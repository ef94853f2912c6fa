"""The result of a claim as markdown."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.claims.arms import Claim
from benchmarks.claims.result import scores
from benchmarks.claims.statistics_of_seeds import Interval

_HEADS = {
    "loss": "loss", "knn": "kNN, %", "linear": "linear, %", "train_s": "training, s",
    "with_teacher_s": "with its teacher's, s", "heterogeneity": "early H",
}  # fmt: skip
_DIGITS = {"loss": 3, "heterogeneity": 3, "train_s": 0, "with_teacher_s": 0}


def table(claim: Claim, result: dict[str, Any]) -> str:
    """Title, what was trained on, one row an arm with the differences to the baseline, and what follows from them."""
    keys = scores(claim)
    head = ["arm", "runs", *(_HEADS[key] for key in keys), "RAUC", "steps to target", "kNN", "linear"]
    lines = [f"# {claim.title}", ""]
    run = next(iter(result["arms"][claim.baseline]["runs"].values()))
    lines += [
        f"A run of `{claim.baseline}` is {run['curve'][-1][0]} steps, {run['images']:,} images of {result['data']}. "
        f"Seconds are those of {result['machine']}.", "",
    ]  # fmt: skip
    for remark in claim.remarks:
        lines += [remark, ""]
    lines += [f"In brackets: less `{claim.baseline}`, seed by seed, 95 % interval.", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm, row in result["arms"].items():
        cells = [f"`{arm}`", str(len(row["runs"]))]
        for key in keys:
            digits, less = _DIGITS.get(key, 1), row.get("difference", {}).get(key)
            behind = f" ({_words(less, digits, '+')})" if less else ""
            cells.append(f"{row['mean'][key]['mean']:.{digits}f}{behind}")
        area = row.get("rauc")
        cells.append(_words(area, 2) if area else "-")
        reached = row.get("steps_to_target")
        cells.append(", ".join("never" if step is None else f"{step:.0f}" for step in reached) if reached else "-")
        cells += [row["verdict"][key] if "verdict" in row else "-" for key in ("knn", "linear")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        *_untrained(result),
        *_claim(result.get("claim", {})),
        *_correlations(result.get("heterogeneity and kNN", {})),
    ]
    return "\n".join(lines) + "\n"


def _untrained(result: dict[str, Any]) -> list[str]:
    """What the encoder scores without training, and which arms end below that."""
    score = result["untrained"]["knn"]
    below = [f"`{arm}`" for arm, row in result["arms"].items() if row["mean"]["knn"]["mean"] < score["mean"]]
    words = f"The untrained encoder has a kNN of {_words(score, 1)} %"
    if not below:
        return [f"{words}, and every arm ends above it."]
    return [
        f"{words}. These arms end below it: {', '.join(below)}. Training is too short here for features to be worth "
        "more than those of random weights, and differences are to be read as such."
    ]


def _claim(found: dict[str, Any]) -> list[str]:
    """The verdict, a line a score."""
    lines = []
    for key, about in found.items():
        numbers = [f"{words} {_words(value, 1, '+')}" for words, value in about.items() if words != "words"]
        lines.append(f"- The claim by {_HEADS[key].split(',')[0]}: {about['words']} ({', '.join(numbers)}).")
    return ["", *lines] if lines else []


def _correlations(found: dict[str, Any]) -> list[str]:
    """Rank correlations, and how large they would be by chance."""
    lines = []
    for words, about in found.items():
        if about["spearman"] is not None:
            chance = 1.96 / math.sqrt(about["runs"] - 1)
            lines.append(
                f"- Early heterogeneity at a fifth of the steps against the last kNN, {words}: Spearman "
                f"{about['spearman']:+.2f} over {about['runs']} runs; between {-chance:.2f} and {chance:.2f} is chance."
            )
    return ["", *lines] if lines else []


def _words(value: Interval, digits: int, sign: str = "") -> str:
    half = value["plus_minus"]
    return f"{value['mean']:{sign}.{digits}f}" + ("" if half is None else f" +- {half:.{digits}f}")
