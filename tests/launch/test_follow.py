"""What is said of runs, by their directories alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.follow import standing


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def made(
    folder: Path, *, steps: int = 0, total: int = 100, events: tuple[dict[str, object], ...] = (), pid: int = 0
) -> Path:
    """A run directory with what the functions read."""
    (folder / "attempts").mkdir(parents=True)
    facts = {"attempt": 1, "world_size": 2, "host": socket.gethostname(), "pid": pid, "job": None}
    (folder / "attempts" / "000001.json").write_text(json.dumps(facts))
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "steps": total}))
    lines = [{"step": step, "loss": 1 / step, "images_per_s": 50.0} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = [{"time": 10.0, "event": "started", "step": 0, "attempt": 1}, *events]
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in journal))
    return folder


STOPPED = {"time": 20.0, "event": "stopped", "reason": "asked to stop", "exit_code": 75}
FAILED = {"time": 20.0, "event": "stopped", "reason": "numbers not finite", "exit_code": 79}


def test_how_a_run_stands(tmp_path: Path) -> None:
    assert standing(made(tmp_path / "a", steps=100), {}).state == "done"
    assert standing(made(tmp_path / "b", steps=40, events=(STOPPED,)), {}).state == "stopped"
    failed = standing(made(tmp_path / "c", steps=40, events=(FAILED,)), {})
    assert (failed.state, failed.why) == ("failed", "numbers not finite")
    ended = standing(made(tmp_path / "d", steps=40), {})
    assert ended.state == "ended" and "without a word" in ended.why
    queued = made(tmp_path / "e", steps=40, events=(STOPPED,))
    (queued / "submitted.jsonl").write_text(json.dumps({"time": 30.0, "job": "7"}) + "\n")
    assert standing(queued, {"7": "PENDING"}).state == "queued"
    assert standing(queued, {"7": "RUNNING"}).state == "running"
    assert standing(queued, {}).state == "stopped"


def test_runs_are_listed_the_newest_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "second", steps=100)
    made(tmp_path / "first", steps=40, events=(STOPPED,))
    os.utime(tmp_path / "second" / "journal.jsonl", (2e9, 2e9))
    (tmp_path / "no-run").mkdir()
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and re.match(r"first +stopped +40/100 +0.0250 +50", lines[1])
    assert re.match(r"second +done +100/100", lines[2])
    assert main(["runs", str(tmp_path / "none")]) == 78


def test_show_says_what_was_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "first", steps=40, events=(FAILED,))
    (folder / "attempts" / "000001.steps").write_text("20 0.012\n40 0.011\n")
    (folder / "ckpt" / "0000000040-a000001").mkdir(parents=True)
    (folder / "ckpt" / "0000000040-a000001" / "x").write_bytes(bytes(2_000_000))
    assert main(["show", str(folder)]) == 0
    said = capsys.readouterr().out
    for words in ("failed: numbers not finite", "40 of 100, loss 0.0250", "2 processes on", "checkpoints to step 40",
                  "0000000040-a000001, 2.0 MB", "reason numbers not finite", "mend what it names"):  # fmt: skip
        assert words in said
    assert main(["show", str(tmp_path)]) == 78 and "lacuna runs lists those" in capsys.readouterr().err


def test_tail_prints_the_end_of_the_newest_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "first", steps=5)
    assert main(["tail", str(folder), "-n", "2"]) == 0
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()[1:]] == [4, 5]
    (folder / "submitted").mkdir()
    (folder / "submitted" / "log-7.txt").write_text("one\ntwo\nthree\n")
    assert main(["tail", str(folder), "-n", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["two", "three"]


def test_cancel_asks_the_process_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; 'launch train'; time.sleep(60)"])
    try:
        folder = made(tmp_path / "first", steps=5, pid=sleeper.pid)
        assert standing(folder, {}).state == "running"
        assert main(["cancel", str(folder)]) == 0
        assert sleeper.wait(10) == -signal.SIGTERM
    finally:
        sleeper.kill()
    assert main(["cancel", str(folder)]) == 78
    assert "is not going on: it is ended" in capsys.readouterr().err
