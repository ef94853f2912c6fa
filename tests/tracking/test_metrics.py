"""Line files: whole lines, no duplicates after a resume, equal to those of a run that never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.tracking.lines import LineFile, keep_lines, read_lines
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.settings import TrackingConfig

ROOT = Path(__file__).resolve().parents[2]
OFF = TrackingConfig(wandb="off")
CONFIG = {"name": "run", "data": {"batch_size": 4}}


def record(step):
    return {"step": step, "loss": 1 / step, "loss_hex": f"{step:08x}", "digest": f"{step:016x}", "lr": 1e-4 / 3}


def bad(step):
    return {"step": step, "position": 4 * step - 1, "shard": "a.tar", "key": "k", "reason": "crc"}


def tracker(run_dir, **settings):
    return Tracker(run_dir, CONFIG, OFF, **settings)


def test_a_killed_and_resumed_run_leaves_the_lines_of_the_one_never_stopped(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = tracker(whole)
    run.evaluation({"step": 0, "knn": 0.1})
    run.log([record(step) for step in range(1, 41)])
    run.evaluation({"step": 40, "knn": 0.2})
    run.ledger([bad(step) for step in (20, 21, 30)])
    run.close()

    first = tracker(broken)
    first.evaluation({"step": 0, "knn": 0.1})
    first.log([record(step) for step in range(1, 33)])
    first.evaluation({"step": 30, "knn": 0.9})
    first.ledger([bad(step) for step in (20, 21)])
    with open(broken / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 33, "lo')  # SIGKILL in the middle of a write
    first.close()
    again = tracker(broken, resume_step=20)
    again.log([record(step) for step in range(21, 41)])
    again.evaluation({"step": 40, "knn": 0.2})
    again.ledger([bad(step) for step in (21, 30)])
    again.close()
    for name in ("metrics", "evaluations", "ledger"):
        assert (broken / f"{name}.jsonl").read_bytes() == (whole / f"{name}.jsonl").read_bytes()


def test_a_run_without_a_checkpoint_starts_its_lines_anew_and_keeps_its_journal(tmp_path):
    run = tracker(tmp_path)
    run.event("started", step=0)
    run.evaluation({"step": 0, "knn": 0.1})
    run.log([record(1)])
    run.close()
    run = tracker(tmp_path)
    assert read_lines(tmp_path / "metrics.jsonl") == [] == read_lines(tmp_path / "evaluations.jsonl")
    assert [line["event"] for line in read_lines(tmp_path / "journal.jsonl")] == ["started"]
    run.close()


def test_a_torn_last_line_is_neither_read_nor_grown_onto(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert read_lines(path) == [{"a": 1}]
    file = LineFile(path)
    file.append([{"a": 3}])
    file.close()
    assert path.read_bytes() == b'{"a": 1}\n{"a": 3}\n'


def test_lines_lost_to_zeros_by_a_power_cut_are_dropped(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bytes(40) + b"\n")
    assert read_lines(path) == [{"a": 1}]
    assert keep_lines(path, lambda line: True) == 1
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_file_with_nothing_to_drop_is_not_rewritten(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    before = path.stat().st_ino
    assert keep_lines(path, lambda line: True) == 0
    assert path.stat().st_ino == before
    assert keep_lines(tmp_path / "absent.jsonl", lambda line: True) == 0


def test_lines_are_strict_json_whatever_the_loss_was(tmp_path):
    torch = pytest.importorskip("torch")
    file = LineFile(tmp_path / "lines.jsonl")
    file.append([{"loss": float("nan"), "grad_norm": float("inf"), "x": torch.tensor(0.5), "path": Path("a")}])
    file.close()
    line = json.loads((tmp_path / "lines.jsonl").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert line == {"loss": None, "grad_norm": None, "x": 0.5, "path": "a"}


def test_every_line_logged_before_a_sigkill_is_on_file(tmp_path):
    program = f"""
import os, sys, signal
sys.path.insert(0, {str(ROOT)!r})
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.settings import TrackingConfig
run = Tracker({str(tmp_path)!r}, {{}}, TrackingConfig(wandb="off"))
for step in range(1, 501):
    run.log([{{"step": step, "loss": 1 / step}}])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 501))


def test_ranks_other_than_the_first_write_nothing(tmp_path):
    run = tracker(tmp_path / "run", is_main=False, wandb_id="abc")
    run.log([record(1)])
    run.evaluation({"step": 0})
    run.ledger([{"step": 1, "position": 0}])
    run.event("started")
    run.sync()
    run.close()
    assert run.wandb_id == "abc"
    assert not (tmp_path / "run").exists()


def test_the_wandb_id_is_made_once_and_the_checkpoint_has_the_last_word(tmp_path):
    ids = []
    for given in (None, None, "fromcheckpoint"):
        run = tracker(tmp_path, wandb_id=given)
        ids.append(run.wandb_id)
        run.close()
    assert ids[0] == ids[1] != ids[2] == "fromcheckpoint"


def test_evaluations_that_are_already_written_are_known_after_a_resume(tmp_path):
    run = tracker(tmp_path)
    run.log([record(step) for step in range(1, 21)])
    run.evaluation({"step": 10, "knn": 0.3})
    run.close()
    run = tracker(tmp_path, resume_step=10)
    assert run.has_evaluation(10) and not run.has_evaluation(20)
    run.close()


def test_lines_that_a_full_disk_refuses_are_kept_told_of_once_and_written_in_order_when_there_is_room(tmp_path):
    warnings = []
    run = tracker(tmp_path, warn=warnings.append)
    run.log([record(1)])
    room = run._files["metrics"]._file
    with open("/dev/full", "ab", buffering=0) as full:
        run._files["metrics"]._file = full
        for step in (2, 3):
            run.log([record(step)])
        with pytest.raises(OSError, match="No space left"):
            run.sync()
    run._files["metrics"]._file = room
    run.log([record(4)])
    run.sync()
    run.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert len(warnings) == 1 and "No space left" in warnings[0] and "training goes on" in warnings[0]
