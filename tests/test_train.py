"""`lacuna train` as a user meets it: real processes, real shards, exit codes, and one order for every world size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import chaos
from tests.zygote import Outcome, shared


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


def start(
    run_dir: Path, pattern: str, *more: str, world: int = 1, steps: int = 12, timeout_s: float = 120
) -> list[Outcome]:
    settings = [*chaos.overrides(run_dir, pattern, steps=steps, stage=1, workers=0), *more]
    return shared().run(chaos.CASE, world, {"overrides": settings}, timeout_s=timeout_s)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_every_world_size_and_accumulation_trains_on_the_same_samples_to_the_same_loss(
    tmp_path: Path, pattern: str
) -> None:
    runs = {
        "one": start(tmp_path / "one", pattern, "backbone.drop_path=0"),
        "three": start(tmp_path / "three", pattern, "backbone.drop_path=0", world=3),
        "accumulated": start(
            tmp_path / "accumulated", pattern, "backbone.drop_path=0", "engine.accumulation=3", "data.workers=2",
            "engine.zero_stage=0",
        ),
    }  # fmt: skip
    assert [outcome.code for outcomes in runs.values() for outcome in outcomes] == [0] * 5
    one, three, accumulated = (lines(tmp_path / name) for name in runs)
    for other in (three, accumulated):
        assert [line["digest"] for line in other] == [line["digest"] for line in one]
        assert [line["bad"] for line in other] == [line["bad"] for line in one]
        assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in one], rel=2e-4)
    ledgers = [(tmp_path / name / "ledger.jsonl").read_text() for name in runs]
    assert ledgers[0] and ledgers[1:] == ledgers[:1] * 2


def test_a_run_asked_to_stop_saves_and_says_75_then_goes_on_exactly(tmp_path: Path, pattern: str) -> None:
    calm, asked = tmp_path / "calm", tmp_path / "asked"
    more = ("checkpoint.every_steps=1000", "tracking.log_every=3")
    assert start(calm, pattern, *more, world=2, steps=60)[0].code == 0
    settings = [*chaos.overrides(asked, pattern, steps=60, stage=1, workers=0), *more]
    attempt = shared().start(chaos.CASE, 2, {"overrides": settings})
    while len((asked / "metrics.jsonl").read_text().splitlines() if (asked / "metrics.jsonl").exists() else []) < 3:
        time.sleep(0.02)
    os.kill(attempt.pids[1], signal.SIGUSR2)  # one rank hears it, all act on it
    outcomes = attempt.wait()
    assert [outcome.code for outcome in outcomes] == [75, 75], outcomes[0].output[-3000:]
    assert "run the same command again" in outcomes[0].output
    stopped_at = chaos.last_step(asked)
    assert 3 <= stopped_at < 60 and len(lines(asked)) == stopped_at
    assert start(asked, pattern, *more, world=2, steps=60)[0].code == 0
    chaos.compare(calm, asked)


def test_a_rank_that_freezes_is_ended_and_named_and_the_run_goes_on_exactly(tmp_path: Path, pattern: str) -> None:
    calm, frozen = tmp_path / "calm", tmp_path / "frozen"
    assert start(calm, pattern, world=2, steps=60)[0].code == 0
    settings = [*chaos.overrides(frozen, pattern, steps=60, stage=1, workers=0), "engine.collective_timeout_s=12"]
    attempt = shared().start(chaos.CASE, 2, {"overrides": settings})
    while chaos.last_step(frozen) < 20:
        time.sleep(0.02)
    os.kill(attempt.pids[1], signal.SIGSTOP)
    waiting, stopped = attempt.wait()
    assert (waiting.code, stopped.code) == (75, -signal.SIGKILL), waiting.output[-3000:]
    assert "E75 another process of this job is gone" in waiting.output
    assert "E75 rank 1 is stopped at step" in stopped.output
    assert start(frozen, pattern, world=2, steps=60)[0].code == 0
    journal = [json.loads(line) for line in (frozen / "journal.jsonl").read_text().splitlines()]
    stalls = [event["what"] for event in journal if event["event"] == "stalled"]  # rank 0's says that it waits
    assert stalls[-1].startswith("rank 1 is stopped at step")
    chaos.compare(calm, frozen)


def test_a_place_that_takes_no_runs_is_refused_with_its_path(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "file").write_text("")
    (outcome,) = start(tmp_path / "file" / "run", pattern)
    assert outcome.code == 78 and f"E78 the run directory {tmp_path}/file/run cannot be made" in outcome.output


def test_a_changed_setting_is_refused_and_fresh_moves_the_old_run_aside(tmp_path: Path, pattern: str) -> None:
    run_dir = tmp_path / "run"
    assert start(run_dir, pattern, steps=2)[0].code == 0
    (changed,) = start(run_dir, pattern, "seed=7", steps=2)
    assert changed.code == 78 and "E78 seed was 0" in changed.output and "--fresh" in changed.output
    (free,) = start(run_dir, pattern, "data.workers=1", "tracking.log_every=1", steps=2)
    assert free.code == 0, free.output[-3000:]
    (fresh,) = start(run_dir, pattern, "seed=7", "--fresh", steps=2)
    assert fresh.code == 0 and len(list(tmp_path.glob("run.before-*"))) == 1
    assert json.loads((run_dir / "config.json").read_text())["seed"] == 7


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over_by_itself(tmp_path: Path, pattern: str) -> None:
    run_dir = tmp_path / "run"
    assert start(run_dir, pattern, steps=12)[0].code == 0
    for path in (run_dir / "ckpt").glob("*/rank*.safetensors"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (outcome,) = start(run_dir, pattern, steps=12)
    assert outcome.code == 77 and "E77" in outcome.output and "--fresh" in outcome.output
    assert len(lines(run_dir)) == 12, "nothing of the old run is lost"


def test_too_many_bad_samples_end_the_run_with_76_naming_one(tmp_path: Path, pattern: str) -> None:
    (outcome,) = start(tmp_path / "run", pattern, "data.error_ratio=0.00001")
    assert outcome.code == 76 and "data.error_ratio" in outcome.output and "small-" in outcome.output


def test_pictures_and_evaluations_come_at_first_and_last_step(tmp_path: Path, pattern: str) -> None:
    run_dir = tmp_path / "run"
    outcomes = start(
        run_dir, pattern, f"data.val={pattern}", "tracking.panels_every=5", "evaluation.every_steps=5",
        "evaluation.methods=knn,linear", world=2,
    )  # fmt: skip
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].output[-3000:]
    steps = [json.loads(line)["step"] for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    assert steps == [0, 5, 10, 12]
    drawn = [f"{kind}-{s:07d}" for kind in ("heterogeneity", "step") for s in steps]
    assert [path.stem for path in sorted((run_dir / "panels").iterdir())] == drawn


def test_a_run_on_a_full_disk_ends_with_75_and_one_sentence(tmp_path: Path, pattern: str) -> None:
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True)
    if probe.returncode:
        pytest.skip(f"needs user namespaces: unshare -rm says {probe.stderr.decode().strip()}")
    settings = chaos.overrides(tmp_path / "full", pattern, steps=12, stage=1, workers=0)
    kwargs = {"mount": str(tmp_path), "overrides": settings}
    (found,) = shared().run("tests/engine/storage_cases.py:train_on_a_full_disk", 1, kwargs)
    said = [line for line in found.output.splitlines() if line.startswith("E75 ")]
    assert found.code == 75, found.output
    assert len(said) == 1 and "No space left" in said[0] and "run the same command again" in said[0]
    assert "Traceback" not in found.output
