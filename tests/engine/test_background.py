"""A checkpoint may be written while training goes on, and none is begun that cannot be finished."""

import pytest

from tests.zygote import shared

CASES = "tests/engine/background_cases.py"


def _run(name, run_dir, world=1, **kwargs):
    outcomes = shared().run(f"{CASES}:{name}", world, {"run_dir": str(run_dir), **kwargs})
    return [outcome.value for outcome in outcomes]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_it_holds_the_state_of_its_step_though_training_went_on(stage, tmp_path):
    for found in _run("trains_on", tmp_path, 2, stage=stage):
        assert found == {"flying": True, "same": True, "goes on": True}


def test_it_is_byte_for_byte_what_a_save_at_once_writes(tmp_path):
    for found in _run("same_bytes", tmp_path, 2):
        assert found["now"] == found["later"] and len(found["now"]) == 2


def test_one_is_in_flight_and_the_next_waits_for_it(tmp_path):
    assert _run("one_at_a_time", tmp_path, 2) == [[None, 1, 2, 4]] * 2


def test_a_write_that_fails_in_one_ranks_thread_fails_that_of_all_and_the_next_works(tmp_path):
    main, other = _run("broken_storage", tmp_path, 2)
    assert main["failed"] and main["worked"] and other["failed"] and other["worked"]
    assert main["told"] == ["checkpoint", "checkpoint failed", "checkpoint"] + ["checkpoint failed"] * 3
    assert main["fatal"] == other["fatal"] and "That of step 3 stands" in main["fatal"]
    assert main["names"] == ["0000000001-a000001", "0000000003-a000001"]


def test_killed_at_any_operation_it_leaves_the_old_or_the_new_checkpoint(tmp_path):
    (found,) = _run("kill_points", tmp_path / "run")
    assert found["steps"] == [2, 3] and found["points"] > 25


def test_a_save_is_not_begun_where_the_last_took_longer_than_what_is_left(tmp_path):
    main, other = _run("deadlines", tmp_path, 2)
    for found in (main, other):
        assert found["unknown"] and found["late"] and found["still_late"] and found["in_time"]
    assert main["stands"] == ["0000000001-a000001"]
    assert [line["kind"] for line in main["told"]] == ["checkpoint", "checkpoint skipped"]
    assert main["told"][1]["reason"].endswith("1.0 s are left")


def test_a_write_that_hangs_is_told_of_once_and_training_goes_on(tmp_path):
    assert _run("slow", tmp_path) == [["checkpoint slow", "checkpoint"]]
