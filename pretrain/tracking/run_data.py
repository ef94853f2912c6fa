"""A run directory as values: what its files say, and the numbers a reader asks for first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pretrain import strict_json
from pretrain.errors import ConfigError
from pretrain.tracking.charts import Point
from pretrain.tracking.lines import Record, inspected_numbers, read_lines


@dataclass(frozen=True)
class RunData:
    """What is in a run directory; lists are in the order of their files."""

    run_dir: Path
    config: Record
    environment: Record
    steps: list[Record]
    evaluations: list[Record]
    inspections: list[Record]
    journal: list[Record]
    ledger: list[Record]
    panels: list[tuple[int, Path]]  # (step, picture), ascending
    samples: list[tuple[int, Path]]  # the same of generated images

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config.get("name") or self.run_dir.name)

    @property
    def last_step(self) -> int:
        """Steps that have a line."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def total_steps(self) -> int | None:
        """Steps the run is to have, where the files tell."""
        if self.config.get("steps"):
            return int(self.config["steps"])
        last = self.steps[-1] if self.steps else {}
        if self.config.get("epochs") and last.get("epoch"):
            total: int = math.ceil(self.config["epochs"] * last["step"] / last["epoch"] - 1e-2)
            return total
        return None

    @property
    def resumes(self) -> list[int]:
        """Steps at which an attempt went on from a checkpoint."""
        return sorted({int(e["step"]) for e in self.journal if e.get("event") == "started" and e.get("step")})

    def curve(self, key: str) -> list[Point]:
        """(step, value) of every step that has a number under key."""
        return [(r["step"], r[key]) for r in self.steps if _is_number(r.get(key))]

    def evaluated(self, key: str) -> list[Point]:
        """(step, value) of every evaluation that has a number under key."""
        return [(r["step"], r[key]) for r in self.evaluations if _is_number(r.get(key))]

    def inspected(self, key: str) -> list[Point]:
        """(step, value) of every inspection that has a number under key, as `inspected_numbers` names it."""
        found = [(r["step"], inspected_numbers(r)) for r in self.inspections]
        return [(step, numbers[key]) for step, numbers in found if _is_number(numbers.get(key))]

    def total(self, key: str) -> int:
        """Sum over the steps of a count."""
        return int(sum(r.get(key) or 0 for r in self.steps))

    def images_per_s(self) -> float | None:
        """Median over the steps, without the first tenth, which warms up."""
        values = [value for _, value in self.curve("images_per_s")]
        return median(values[len(values) // 10 :]) if values else None

    def training_s(self) -> float | None:
        """Seconds spent in steps, evaluations and pictures apart."""
        batch = self.config.get("data", {}).get("batch_size")
        rates = [value for _, value in self.curve("images_per_s") if value > 0]
        return sum(batch / rate for rate in rates) if batch and rates else None


def load_run(run_dir: str | Path) -> RunData:
    """What run_dir holds. Raises ConfigError where it is not the directory of a run."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is not a directory; give the directory of a run, for example runs/first")
    for name in ("config.json", "metrics.jsonl"):
        if not (run_dir / name).is_file():
            raise ConfigError(
                f"{run_dir} has no {name}, so it is not the directory of a run; give one, for example runs/first"
            )
    steps = [r for r in read_lines(run_dir / "metrics.jsonl") if isinstance(r.get("step"), int)]
    return RunData(
        run_dir=run_dir,
        config=_json(run_dir / "config.json"),
        environment=_json(run_dir / "environment.json"),
        steps=steps,
        evaluations=[r for r in read_lines(run_dir / "evaluations.jsonl") if isinstance(r.get("step"), int)],
        inspections=[r for r in read_lines(run_dir / "inspections.jsonl") if isinstance(r.get("step"), int)],
        journal=read_lines(run_dir / "journal.jsonl"),
        ledger=read_lines(run_dir / "ledger.jsonl"),
        panels=_pictures(run_dir, "step", steps[-1]["step"] if steps else 0),
        samples=_pictures(run_dir, "samples", steps[-1]["step"] if steps else 0),
    )


def _pictures(run_dir: Path, kind: str, last_step: int) -> list[tuple[int, Path]]:
    found = []
    for path in (run_dir / "panels").glob(f"{kind}-*.png"):
        digits = path.stem.removeprefix(f"{kind}-")
        if digits.isdigit() and int(digits) <= last_step:  # a later one is of an attempt that was undone
            found.append((int(digits), path))
    return sorted(found)


def _json(path: Path) -> Record:
    try:
        value = strict_json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
