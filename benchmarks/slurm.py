"""What a cluster does to a run, and how fast the run answers: goals G3, G4 and G5.

    python benchmarks/slurm.py

G3: every scenario of tests/test_slurm.py on a real SLURM of two nodes on this machine; a run must end bit for bit as
one that nobody disturbed. G4: seconds from a signal to the published checkpoint, and to the end of both ranks, of a
tiny model on two ranks. G5: seconds from the SIGKILL of one rank to the end of the other, and whether any process is
left. Writes benchmarks/results/slurm.json; some six minutes on two cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine, versions  # noqa: E402
from tests import chaos  # noqa: E402
from tests.campaign import Counts, counted  # noqa: E402
from tests.zygote import Attempt, shared  # noqa: E402

TRIALS = 10
SCENARIOS = 13
Act = Callable[[Attempt, Path], dict[str, float]]  # what is done to a run, and the seconds that took


def main() -> int:
    """Measures, prints and writes; returns 1 where a scenario failed or a goal was missed."""
    result: dict[str, Any] = {"command": "python benchmarks/slurm.py", "date": date.today().isoformat(),
                              "machine": machine("cpu"), "versions": versions()}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        pattern = chaos.make_shards(Path(folder) / "shards")
        result["G4 signal to checkpoint, s"] = _trials(Path(folder), pattern, "asked", _answer)
        result["G5 death of a peer to all gone, s"] = _trials(Path(folder), pattern, "killed", _death)
    shared().close()
    result["G3 scenarios"] = _scenarios()
    failed = [row for row in result["G3 scenarios"] if row["outcome"] != "passed"]
    late = max(result["G4 signal to checkpoint, s"]["published"]) >= 2
    slow = max(result["G5 death of a peer to all gone, s"]["gone"]) >= 5
    path = ROOT / "benchmarks" / "results" / "slurm.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["G3 scenarios"]:
        print(f"G3  {row['outcome']:<8} {row['seconds']:>6.1f} s  {row['name']}")
    for goal in ("G4 signal to checkpoint, s", "G5 death of a peer to all gone, s"):
        print(goal, {name: f"{min(values):.2f} to {max(values):.2f}" for name, values in result[goal].items()})
    return int(bool(failed) or late or slow)


def scenario_campaign(number: int, first: int = 0) -> Counts:
    """G3: every scenario of tests/test_slurm.py, or where fewer are asked for those that are not slow."""
    rows = [row for row in _scenarios(few=number < SCENARIOS) if row["outcome"] != "skipped"]
    failures = [f"{row['name']}: {row['outcome']}" for row in rows if row["outcome"] != "passed"]
    return counted(len(rows), failures, worst_scenario_s=max((row["seconds"] for row in rows), default=0.0))


def signal_campaign(number: int, first: int = 0) -> Counts:
    """G4: signals to a run in the middle of training; each must be a published checkpoint within 2 s."""
    return _timed(number, "asked", _answer, {"published": 2.0, "ended": 30.0})


def death_campaign(number: int, first: int = 0) -> Counts:
    """G5: one of two ranks is killed; the other must be gone within 5 s."""
    return _timed(number, "killed", _death, {"gone": 5.0})


def _timed(number: int, name: str, act: Act, limits: dict[str, float]) -> Counts:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        found = _trials(Path(folder), chaos.make_shards(Path(folder) / "shards"), name, act, number)
    late = [f"{what} after {t} s" for what, times in found.items() for t in times if t >= limits[what]]
    return counted(number, late, **{f"worst_{what}_s": max(times) for what, times in found.items()})


def _trials(folder: Path, pattern: str, name: str, act: Act, number: int = TRIALS) -> dict[str, list[float]]:
    """What act measures on so many fresh runs, each in the middle of training."""
    found: dict[str, list[float]] = {}
    for trial in range(number):
        run_dir = folder / f"{name}-{trial}"
        settings = chaos.overrides(run_dir, pattern, 100_000, stage=1, workers=0)
        attempt = shared().start(chaos.CASE, 2, {"overrides": [*settings, "checkpoint.every_steps=100000"]})
        while not (run_dir / "metrics.jsonl").exists() or chaos._lines(run_dir) < 20:
            time.sleep(0.01)
        for key, value in act(attempt, run_dir).items():
            found.setdefault(key, []).append(round(value, 3))
    return found


def _answer(attempt: Attempt, run_dir: Path) -> dict[str, float]:
    began = time.time()
    os.kill(attempt.pids[1], signal.SIGUSR2)
    while not list((run_dir / "ckpt").glob("[0-9]*")):
        time.sleep(0.002)
    published = time.time() - began
    codes = [outcome.code for outcome in attempt.wait()]
    assert codes == [75, 75], codes
    return {"published": published, "ended": time.time() - began}


def _death(attempt: Attempt, run_dir: Path) -> dict[str, float]:
    began = time.time()
    os.kill(attempt.pids[1], signal.SIGKILL)
    codes = [outcome.code for outcome in attempt.wait()]
    assert codes == [75, -signal.SIGKILL], codes
    return {"gone": time.time() - began}


def _scenarios(*, few: bool = False) -> list[dict[str, Any]]:
    """Name, outcome and seconds of each; of few, the slow ones are skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_slurm.py", f"--junitxml={report}"]
        subprocess.run([*command, *([] if few else ["--slow"])], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return [{"name": case.get("name"), "seconds": round(float(case.get("time", 0)), 1), "outcome": _outcome(case)}
                for case in cases]  # fmt: skip


def _outcome(case: ElementTree.Element) -> str:
    return next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")


if __name__ == "__main__":
    sys.exit(main())
