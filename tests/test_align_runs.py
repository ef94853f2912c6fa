"""Runs with a teacher: real processes, one and two of them, killed and gone on with; and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.engine.load import load_backbone
from pretrain.engine.published import read_newest
from pretrain.tracking.report import write_report
from tests import chaos
from tests.zygote import shared

CASE = "tests/test_align_runs.py:rank"
AVERAGE = ("objective.teacher.model=ema", "objective.teacher.ema_decay=0.9")


def rank(place: Any, config: str, overrides: list[str]) -> int:
    """What a forked rank does: `lacuna train` of a small config."""
    from launch.cli import main

    raise SystemExit(main(["train", f"configs/{config}.py", *overrides]))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


def settings(run_dir: Path, pattern: str, *more: str, steps: int = 12) -> dict[str, Any]:
    given = chaos.overrides(run_dir, pattern, steps=steps, stage=1, workers=0)
    kept = [setting for setting in given if not setting.startswith("objective.")]
    return {"config": "maskalign_cifar", "overrides": [*kept, "epochs=none", "checkpoint.every_steps=4", *more]}


def finish(kwargs: dict[str, Any], world: int) -> None:
    outcomes = shared().run(CASE, world, kwargs)
    assert [outcome.code for outcome in outcomes] == [0] * world, outcomes[0].output[-3000:]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_with_a_moving_teacher_as_one_does(tmp_path: Path, pattern: str) -> None:
    for world in (1, 2):
        given = settings(tmp_path / f"of{world}", pattern, *AVERAGE, "backbone.drop_path=0", steps=6)
        finish(given, world)
    one, two = lines(tmp_path / "of1"), lines(tmp_path / "of2")
    assert [line["digest"] for line in one] == [line["digest"] for line in two]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    first, second = (read_newest(tmp_path / name, "model").state for name in ("of1", "of2"))
    moved = [name for name in first if name.startswith("objective.ema.") and name.endswith("qkv.weight")]
    assert len(moved) == 2
    for name in moved:
        assert (first[name] - second[name]).abs().max() < 1e-4
        student = first[name.replace("objective.ema.encoder.", "")]
        assert (first[name] - student).abs().max() > 1e-4  # it lags behind


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_with_the_average_it_had(tmp_path: Path, pattern: str, precision: str) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    more = (*AVERAGE, f"engine.precision={precision}")
    finish(settings(calm, pattern, *more), 2)
    attempt = shared().start(CASE, 2, settings(killed, pattern, *more))
    while chaos.last_step(killed) < 4:
        time.sleep(0.005)
    for pid in attempt.pids:
        os.kill(pid, signal.SIGKILL)
    assert [outcome.code for outcome in attempt.wait()] == [-signal.SIGKILL] * 2
    finish(settings(killed, pattern, *more), 2)
    assert chaos.compare(calm, killed)["metrics_lines"] == 12


def test_a_run_of_ours_teaches_another_and_is_no_part_of_it(tmp_path: Path, pattern: str) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    first = settings(teacher, pattern, steps=4) | {"config": "mae_cifar"}
    finish(first, 1)
    taught = (f"objective.teacher.model={teacher}", "tracking.panels_every=2", "engine.zero_stage=3")
    finish(settings(run, pattern, *taught, steps=4), 2)
    names = set(read_newest(run, "model").state)
    assert {name.split(".")[1] for name in names if name.startswith("objective.")} == {"alignment"}
    inspections = [json.loads(line) for line in (run / "inspections.jsonl").read_text().splitlines()]
    assert [line["step"] for line in inspections] == [0, 2, 4]
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    pictures = [line["path"] for line in journal if line.get("group") == "alignment"]
    assert pictures == [f"panels/alignment-{step:07d}.png" for step in (0, 2, 4)]
    assert all((run / path).exists() for path in pictures)
    assert "<h2>Alignment</h2>" in write_report(run).read_text()
    teacher.rename(tmp_path / "gone")
    assert load_backbone(run).step == 4  # what it taught needs it no more
    again = settings(tmp_path / "other", pattern, *taught[:1], steps=4)
    (outcome,) = shared().run(CASE, 1, again)
    assert outcome.code == 78 and "is neither a folder nor a model of timm's" in outcome.output
