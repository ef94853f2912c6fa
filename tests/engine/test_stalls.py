"""A rank that stands still is found, described and ended by the process that watches it; one that only waits is not."""

import os
import signal
import time
from pathlib import Path

import pytest

from pretrain.engine.heartbeat import stalls_of
from tests.engine.stall_cases import TIMEOUT_S
from tests.zygote import shared

CASES = "tests/engine/stall_cases.py"


def _report(run_dir, rank=0):
    return (run_dir / "stalls" / f"a000001-rank{rank:05d}.txt").read_text()


def test_a_rank_that_holds_the_interpreters_lock_is_ended_with_its_stacks_written(tmp_path):
    (outcome,) = shared().run(f"{CASES}:holds_the_lock", 1, {"run_dir": str(tmp_path)}, timeout_s=60)
    assert outcome.code == -signal.SIGKILL
    report = _report(tmp_path)
    assert report.startswith("rank 0 makes no progress at step 7, while training") and "in holds_the_lock" in report
    assert "E75 rank 0 makes no progress at step 7" in outcome.output and "run the same command again" in outcome.output
    assert stalls_of(tmp_path, 1) == [report.splitlines()[0]] and stalls_of(tmp_path, 2) == []


def test_a_rank_that_hangs_on_a_shard_is_ended_and_the_shard_is_named(tmp_path):
    fifo = tmp_path / "in1k-000131.tar"
    os.mkfifo(fifo)
    hold = os.open(fifo, os.O_RDWR)  # so that opening it does not wait, and reading does
    try:
        (outcome,) = shared().run(
            f"{CASES}:reads_a_pipe", 1, {"run_dir": str(tmp_path), "fifo": str(fifo)}, timeout_s=60
        )
    finally:
        os.close(hold)
    assert outcome.code == -signal.SIGKILL
    assert "while reading images" in _report(tmp_path)
    if "in a system call on" not in _report(tmp_path):
        pytest.skip("needs /proc/PID/syscall, which this kernel does not show")
    assert f"in a system call on {fifo}" in _report(tmp_path)


def test_who_stands_still_is_ended_and_who_waits_for_it_hears_of_it(tmp_path):
    waiting, lost = shared().run(f"{CASES}:one_is_lost", 2, {"run_dir": str(tmp_path)}, timeout_s=60)
    assert lost.code == -signal.SIGKILL and "E75 rank 1" in lost.output
    assert waiting.code == 1 and "E75" not in waiting.output and "onnection" in waiting.output
    assert "in one_is_lost" in _report(tmp_path, 1)
    assert not (tmp_path / "stalls" / "a000001-rank00000.txt").exists() or "waits for" in _report(tmp_path)


def test_a_stopped_rank_is_ended_though_it_can_write_no_stacks_and_was_allowed_more_time(tmp_path):
    attempt = shared().start(f"{CASES}:comes_to_a_stop", 1, {"run_dir": str(tmp_path)})
    _wait_for(tmp_path / "ready")
    os.kill(attempt.pids[0], signal.SIGSTOP)
    (outcome,) = attempt.wait(60)
    assert outcome.code == -signal.SIGKILL
    assert "rank 0 is stopped at step 7" in _report(tmp_path) and "it wrote no stacks" in _report(tmp_path)


def test_what_may_take_long_is_let_be(tmp_path):
    (outcome,) = shared().run(f"{CASES}:is_slow", 1, {"run_dir": str(tmp_path)}, timeout_s=60)
    assert outcome.value == "alive" and not (tmp_path / "stalls").exists()


def test_a_job_that_was_suspended_whole_goes_on(tmp_path):
    attempt = shared().start(f"{CASES}:suspended", 1, {"run_dir": str(tmp_path)})
    job = [int(_wait_for(tmp_path / "ready")), attempt.pids[0]]
    for pid in job:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2 * TIMEOUT_S)
    for pid in job:
        os.kill(pid, signal.SIGCONT)
    time.sleep(0.2)
    (tmp_path / "awake").write_text("")
    (outcome,) = attempt.wait(60)
    assert outcome.value.startswith("alive") and not (tmp_path / "stalls").exists()


def _wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()
