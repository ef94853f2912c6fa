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

from benchmarks.claims.arms import Claim

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Budget:
    """What every arm gets."""

    steps: int
    every_steps: int  # between two points of the curve
    max_images: int  # of each split, for kNN and linear probe
    runs: Path
    settings: tuple[str, ...]  # the same for all arms; those of objective for arms of the claim's own config


def run(claim: Claim, name: str, seed: int, budget: Budget) -> dict[str, Any]:
    """What `read` finds. A run that is there is read, one that was cut goes on; its teacher's must be there."""
    if not is_finished(claim, name, seed, budget):
        lacuna(["train", str(ROOT / (claim.arms[name].config or claim.config)), *settings(claim, name, seed, budget)])
        assert is_finished(claim, name, seed, budget), f"{_folder(budget, name, seed)} lacks its last evaluation"
    return read(claim, name, seed, budget)


def is_finished(claim: Claim, name: str, seed: int, budget: Budget) -> bool:
    """Whether a run is there, and was evaluated after its last step."""
    evaluations = _folder(budget, name, seed) / "evaluations.jsonl"
    return evaluations.exists() and _lines(evaluations)[-1]["step"] == claim.steps(name, budget.steps)


def read(claim: Claim, name: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Loss, kNN and linear probe (percent), seconds of training alone and with the teacher's, the curve of kNN, and
    early heterogeneity for a claim about it."""
    run_dir, steps = _folder(budget, name, seed), claim.steps(name, budget.steps)
    lines, evaluations = _lines(run_dir / "metrics.jsonl"), _lines(run_dir / "evaluations.jsonl")
    found = {
        "loss": statistics.fmean(line.get(claim.loss, line["loss"]) for line in lines[-max(1, steps // 10) :]),
        "knn": 100 * evaluations[-1]["knn"],
        "linear": 100 * evaluations[-1]["linear"],
        "images": lines[-1]["samples"],
        "train_s": _seconds(run_dir),
        "with_teacher_s": _seconds(run_dir),
        "curve": [[line["step"], 100 * line["knn"]] for line in evaluations],
    }
    teacher = claim.arms[name].teacher
    if teacher is not None:
        found["with_teacher_s"] += read(claim, teacher, seed, budget)["with_teacher_s"]
    if claim.heterogeneity:
        found["heterogeneity"] = early_heterogeneity(_lines(run_dir / "inspections.jsonl"), steps)
    return found


def early_heterogeneity(inspections: list[dict[str, Any]], steps: int) -> float:
    """H = 1 - entropy of hidden tokens, mean over the first half of the blocks, of the inspection nearest to a fifth of
    the steps."""
    nearest = min(inspections, key=lambda line: abs(line["step"] - steps / 5))
    entropy = nearest["heterogeneity"]["entropy"]
    return 1 - statistics.fmean(entropy[: max(1, len(entropy) // 2)])


def same_budget(budget: Budget) -> bool:
    """Whether the runs in its folder, if any, were made with this budget; an empty folder is marked with it."""
    mark, words = budget.runs / "budget.json", json.dumps(dataclasses.asdict(budget), default=str, indent=1)
    if mark.exists():
        return mark.read_text() == words
    budget.runs.mkdir(parents=True, exist_ok=True)
    mark.write_text(words)
    return True


def settings(claim: Claim, name: str, seed: int, budget: Budget) -> list[str]:
    """What an arm's config is told: name and place of the run, what all arms share, what the arm sets, its teacher."""
    arm, steps, own = claim.arms[name], claim.steps(name, budget.steps), list(claim.arms[name].settings)
    if arm.teacher is not None:
        own.append(f"objective.teacher.model={_folder(budget, arm.teacher, seed)}")
    if claim.heterogeneity:
        own.append(f"tracking.panels_every={max(1, steps // 5)}")
    common = [one for one in budget.settings if arm.config is None or not one.startswith("objective.")]
    return [
        f"name={_folder(budget, name, seed).name}", f"seed={seed}", f"steps={steps}", "epochs=none",
        f"runs_dir={budget.runs}", f"evaluation.every_steps={budget.every_steps}", "evaluation.methods=knn,linear",
        f"evaluation.max_images={budget.max_images}", "tracking.wandb=off", *common, *own,
    ]  # fmt: skip


def _folder(budget: Budget, name: str, seed: int) -> Path:
    return budget.runs / f"{name}-{seed}"


def _seconds(run_dir: Path) -> float:
    """Of its steps, without start-up and evaluation."""
    lines = _lines(run_dir / "metrics.jsonl")
    batch = lines[-1]["samples"] / lines[-1]["step"]
    return sum(batch / line["images_per_s"] for line in lines if line.get("images_per_s"))


def lacuna(arguments: list[str]) -> None:
    """One command of the product, in a process of its own. Raises RuntimeError with the end of its output."""
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"lacuna {' '.join(arguments)}: {done.stdout.decode(errors='replace')[-3000:]}")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
