"""The goals table: every line has a campaign that is there, slices add up, and a miss is a miss."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.goals import _run, _stands, _table
from benchmarks.goals_list import GOALS, Goal
from tests.campaign import Counts, counted, merged
from tests.syntax import ROOT


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_the_campaign_of_a_goal_is_there(goal: Goal) -> None:
    module, _, function = goal.campaign.partition(":")
    assert f"def {function}(" in (ROOT / (module.replace(".", "/") + ".py")).read_text()
    assert 0 < goal.short <= goal.full and goal.slice > 0


def test_slices_add_up_and_the_worst_is_kept() -> None:
    first = counted(3, ["a"], decoded=2, worst_s=0.5, all_cases=9)
    second = counted(4, [], decoded=1, worst_s=0.2, all_cases=9, more=1)
    assert merged(first, second) == {
        "tried": 7, "failed": 1, "failures": ["a"], "decoded": 3, "worst_s": 0.5, "all_cases": 9, "more": 1,
    }  # fmt: skip


def campaign(number: int, first: int = 0) -> Counts:
    """Seven cases, of which number 5 fails."""
    cases = range(first, min(first + number, 7))
    return counted(len(cases), [f"case {case}" for case in cases if case == 5], all_cases=7)


def stub(full: int, short: int = 1) -> Goal:
    return Goal("G0", "", "something", "nothing fails", "tests.test_goals:campaign", "cases", short, full, 2)


def test_a_goal_is_reached_when_all_cases_were_tried_and_none_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: sys.modules[__name__])
    assert _run(stub(full=5), "full", 0)["reached"]
    line = _run(stub(full=100), "full", 0)
    assert (line["tried"], line["failed"], line["reached"]) == (7, 1, False)
    monkeypatch.setattr(sys.modules[__name__], "campaign", lambda number, first: counted(0, []))
    assert not _run(stub(full=5), "full", 0)["reached"]


def test_the_full_form_stands_before_the_short_one_and_what_was_not_run_is_a_miss() -> None:
    short, full = ({"tried": n, "failed": 0, "reached": True, "command": "c"} for n in (1, 2))
    assert _stands({"short": short, "full": full}) is full
    assert _stands({"short": short}) is short
    assert "| not run | - |" in _table([(stub(5), {})])[-1]


def test_the_table_is_printed_without_running_anything_and_a_missing_line_ends_with_1(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/goals.py", "--only", "G9", "--out", str(tmp_path / "goals.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "not run" in done.stdout
    line = {"full": {"tried": 1000, "failed": 0, "reached": True, "command": "c"}}
    (tmp_path / "goals.json").write_text(json.dumps({"G9": line}))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1,000 layouts" in done.stdout
