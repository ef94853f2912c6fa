"""The reliability goals: runs the campaign behind each, counts what was tried and what failed, and prints the table.

    python benchmarks/goals.py --short              # every goal, some ten minutes
    python benchmarks/goals.py --full               # hours; --minutes for the soak
    python benchmarks/goals.py --full --only G6,G8  # these lines alone are made anew
    python benchmarks/goals.py --table              # the table as it stands

Cases are numbered and always the same, so a failure that is told can be run again alone. Results are merged into
benchmarks/results/goals.json, failures included, line by line. Ends with 1 where a goal was missed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.goals_list import GOALS, Goal  # noqa: E402
from benchmarks.machine import machine, versions  # noqa: E402
from tests.campaign import Counts, merged  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "goals.json"
Line = dict[str, Any]


def main() -> int:
    """Runs what was asked for, prints the table; 1 where a goal was missed or never tried."""
    options = _options()
    form = "full" if options.full else "short"
    chosen = [goal for goal in GOALS if options.only is None or goal.number in options.only.split(",")]
    if not chosen:
        sys.exit(f"--only {options.only}: there are {', '.join(dict.fromkeys(goal.number for goal in GOALS))}")
    results: dict[str, dict[str, Line]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.short or options.full:
        for goal in chosen:
            line = _run(goal, form, options.minutes)
            results.setdefault(goal.name, {})[form] = line
            options.out.write_text(json.dumps(results, indent=1) + "\n")
        lines = [(goal, results[goal.name][form]) for goal in chosen]
    else:
        lines = [(goal, _stands(results.get(goal.name, {}))) for goal in chosen]
    print("\n".join(_table(lines)))
    return int(not all(line.get("reached") for _, line in lines))


def _run(goal: Goal, form: str, minutes: float) -> Line:
    """The goal's line, after running its campaign slice by slice."""
    module, _, function = goal.campaign.partition(":")
    campaign: Callable[..., Counts] = getattr(importlib.import_module(module), function)
    wanted = goal.full if form == "full" else goal.short
    if goal.unit == "minutes" and form == "full":
        wanted = int(minutes)
    began, counts = time.monotonic(), Counts(tried=0, failed=0, failures=[])
    for first in range(0, wanted, goal.slice):
        size = min(goal.slice, wanted - first)
        found = campaign(size, first)
        counts = merged(counts, found)
        _say(goal, counts, wanted, time.monotonic() - began)
        if found["tried"] < size:
            break  # there are no more cases
    enough = counts["tried"] >= min(wanted, counts.get("all_cases", wanted))
    command = f"python benchmarks/goals.py --{form} --only {goal.number}"
    return {
        "what": goal.what, "target": goal.target, "command": command,
        "date": date.today().isoformat(), "machine": machine("cpu"), "versions": versions(),
        "seconds": round(time.monotonic() - began, 1), "unit": goal.unit, **counts,
        "reached": enough and counts["failed"] == 0,
    }  # fmt: skip


def _say(goal: Goal, counts: Counts, wanted: int, seconds: float) -> None:
    tried = max(counts["tried"], 1)
    left = (min(wanted, counts.get("all_cases", wanted)) - tried) * seconds / tried
    print(
        f"{goal.name}: {counts['tried']} of {wanted} {goal.unit}, {counts['failed']} failed; "
        f"{tried / max(seconds, 1e-9):.3g} a second, {max(left, 0) / 60:.1f} minutes left",
        flush=True,
    )
    for failure in counts["failures"]:
        print(f"    {failure}", flush=True)


def _stands(forms: dict[str, Line]) -> Line:
    """What is known of a goal: its full form, else its short one."""
    return forms.get("full") or forms.get("short") or {}


def _table(lines: list[tuple[Goal, Line]]) -> list[str]:
    """The goals table as Markdown."""
    rows = [("goal", "what was done", "count", "failed", "target", "reached", "command")]
    for goal, line in lines:
        worst = ", ".join(f"{name[6:]} {value}" for name, value in line.items() if name.startswith("worst_"))
        failed = f"{line['failed']}{f' (worst {worst})' if worst else ''}" if line else "-"
        count = f"{line['tried']:,} {goal.unit}" if line else "not run"
        reached = "yes" if line.get("reached") else "no"
        rows.append((goal.number, goal.what, count, failed, goal.target, reached, line.get("command", "-")))
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return ["", head, "|" + "---|" * len(rows[0]), *body]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the small counts")
    parser.add_argument("--full", action="store_true", help="the counts of the goals")
    parser.add_argument("--only", help="goals to run or print, such as G6,G8")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing (as without any option)")
    parser.add_argument("--minutes", type=float, default=120, help="length of the full soak, G17 (default 120)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results file, merged into")
    options = parser.parse_args()
    if options.short + options.full + options.table > 1:
        parser.error("give one of --short, --full and --table")
    return options


if __name__ == "__main__":
    sys.exit(main())
