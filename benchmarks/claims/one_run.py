"""One arm with one seed: trained to the end of its schedule by the product's own commands, or found trained."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims.arms import Arm, Claim

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Budget:
    """What every arm gets."""

    steps: int
    every_steps: int  # between two points of the curve
    max_images: int  # of each split, for kNN and linear probe
    runs: Path
    settings: tuple[str, ...]  # the same for all arms


def run(claim: Claim, name: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Loss, kNN and linear probe (percent), seconds of training, and the curve of kNN. A run that is there is read, one
    that was cut goes on."""
    arm, run_dir = claim.arms[name], budget.runs / f"{name}-{seed}"
    steps = arm.times * budget.steps
    found = run_dir / f"evaluate-step-{steps:07d}.json"
    if not found.exists():
        lacuna(["train", str(ROOT / claim.config), *_settings(arm, f"{name}-{seed}", seed, steps, budget)])
        lacuna(["evaluate", str(run_dir), "--max-images", str(budget.max_images)])
    lines = _lines(run_dir / "metrics.jsonl")
    (last,) = json.loads(found.read_text())["results"].values()
    batch = lines[-1]["samples"] / lines[-1]["step"]
    return {
        "loss": statistics.fmean(line["loss"] for line in lines[-max(1, steps // 10) :]),
        "knn": 100 * last["knn"],
        "linear": 100 * last["linear"],
        "train_s": sum(batch / line["images_per_s"] for line in lines if line.get("images_per_s")),
        "curve": [[line["step"], 100 * line["knn"]] for line in _lines(run_dir / "evaluations.jsonl")],
    }


def same_budget(budget: Budget) -> bool:
    """Whether the runs in its folder, if any, were made with this budget; an empty folder is marked with it."""
    mark, words = budget.runs / "budget.json", json.dumps(dataclasses.asdict(budget), default=str, indent=1)
    if mark.exists():
        return mark.read_text() == words
    budget.runs.mkdir(parents=True, exist_ok=True)
    mark.write_text(words)
    return True


def _settings(arm: Arm, name: str, seed: int, steps: int, budget: Budget) -> list[str]:
    return [
        f"name={name}", f"seed={seed}", f"steps={steps}", "epochs=none", f"runs_dir={budget.runs}",
        f"evaluation.every_steps={budget.every_steps}", "evaluation.methods=knn",
        f"evaluation.max_images={budget.max_images}", "tracking.wandb=off", *budget.settings, *arm.settings,
    ]  # fmt: skip


def lacuna(arguments: list[str]) -> None:
    """One command of the product, in a process of its own. Raises RuntimeError with the end of its output."""
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"lacuna {' '.join(arguments)}: {done.stdout.decode(errors='replace')[-3000:]}")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
