"""A checkpoint is whole or absent: under kills, full disks, flipped bits, dead ranks and zombies."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.engine.campaigns import corruption_campaign, power_loss_campaign, storage_campaign
from tests.engine.checkpoint_cases import KINDS
from tests.engine.kill_points import kill_campaign
from tests.zygote import shared

CASES = "tests/engine/checkpoint_cases.py"


def _run(name, run_dir, world=1, **kwargs):
    outcomes = shared().run(f"{CASES}:{name}", world, {"run_dir": str(run_dir), **kwargs})
    return [outcome.value for outcome in outcomes]


def _ranks(target, run_dir):
    return [outcome.value for outcome in shared().run(target, 2, {"run_dir": str(run_dir)})]


def test_every_one_of_100_corruptions_is_detected_and_the_older_checkpoint_wins():
    found = corruption_campaign(100)
    assert found["failures"] == []
    assert all(found[kind] for kind in KINDS)


def test_a_run_with_history_never_starts_from_scratch_by_itself(tmp_path):
    _run("saved", tmp_path / "run", 2)
    for texts in _run("lost", tmp_path / "run", 2):
        for text in texts.values():
            assert "none of them verifies" in text
            assert "--fresh" in text


def test_a_checkpoint_of_another_run_is_refused_in_words(tmp_path):
    _run("saved", tmp_path / "run")
    for name, text in _run("mismatches", tmp_path / "run")[0].items():
        assert {"shape": "head.weight", "batch_size": "data.batch_size"}.get(name, name) in text
        assert "--fresh" in text or "--allow-change" in text


def test_a_save_killed_at_any_operation_leaves_the_old_or_the_new_checkpoint(tmp_path):
    found = _run("kill_points", tmp_path / "run")[0]
    operations = {"write", "fsync", "fsync_dir", "rename", "append", "link", "remove", "mkdir", "statvfs", "chunk"}
    assert {name.split()[1] for name in found["points"]} == operations
    assert set(found["outcomes"]) == {"2", "3"}
    assert found["killed"] > 25


def test_storage_that_fails_on_one_rank_fails_the_save_of_all_and_nothing_else():
    for first in (0, 41):  # at stages 3 and 0
        found = storage_campaign(12, first)
        assert found["failures"] == []
        assert 0 < found["checkpoints_not_made"] <= 12


def test_three_saves_in_a_row_that_one_rank_cannot_make_end_the_run_in_a_sentence_on_all(tmp_path):
    main, other = _ranks("tests/engine/storage_cases.py:worn_out", tmp_path / "run")
    assert main["said"] == other["said"]
    assert "3 checkpoints in a row" in main["said"] and "run the same command again" in main["said"]
    assert main["stands"] == other["stands"] == [main["saved"]]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path):
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True)
    if probe.returncode:
        pytest.skip(f"needs user namespaces: unshare -rm says {probe.stderr.decode().strip()}")
    found = shared().run(f"{CASES}:full_disk", 1, {"mount": str(tmp_path)})[0].value
    assert found["outcomes"] == [True, False, False, True]
    assert [name for name in found["names"] if name.startswith(".")] == []
    assert found["restored"] == 2


def test_a_zombie_attempt_woken_before_its_rename_is_fenced_and_changes_nothing(tmp_path):
    zombie = shared().start(f"{CASES}:frozen_before_rename", 1, {"run_dir": str(tmp_path)})
    _wait_until_stopped(zombie.pids[0])
    winner = _run("takes_over", tmp_path)[0]
    os.kill(zombie.pids[0], signal.SIGCONT)
    assert zombie.wait()[0].code == 80
    after = {p.name: p for p in Path(winner["path"]).iterdir()}
    assert winner["start"] == 1
    assert winner["attempt"] == 2
    assert set(after) == set(winner["hashes"])
    names = sorted(p.name for p in (tmp_path / "ckpt").iterdir())
    assert [n for n in names if n.endswith("a000002")] == ["0000000002-a000002"]
    assert "0000000002-a000001" not in names


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    names = ["0000000004", "0000000008", "0000000009"]
    expected = [f"{name}-a000001" for name in names]
    assert _run("prunes", tmp_path)[0] == [*expected, f"ckpt/{expected[-1]}"]


def _wait_until_stopped(pid: int) -> None:
    for _ in range(6000):
        if "State:\tT" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} never stopped")


def test_two_ranks_killed_at_some_operations_leave_the_old_or_the_new_checkpoint():
    assert kill_campaign(2)["failures"] == []


@pytest.mark.slow
def test_two_ranks_killed_at_every_operation_leave_the_old_or_the_new_checkpoint():
    found = kill_campaign(1000)
    assert found["failures"] == []
    assert found["tried"] == found["all_cases"] > 150


def test_whatever_a_power_loss_leaves_the_run_goes_on_from_the_last_checkpoint_with_all_its_lines():
    assert power_loss_campaign(60)["failures"] == []


def test_a_name_that_is_never_flushed_would_be_noticed():
    assert power_loss_campaign(40, forgetful=True)["failed"] > 0
