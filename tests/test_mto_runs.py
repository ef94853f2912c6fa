"""Runs with MTO-R: real processes, alike on any number of them, stopped in the middle of the ramp and gone on with."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.engine.stored import FIXED, Reader
from tests import chaos
from tests.zygote import Outcome, shared

CASE = "tests/test_mto_runs.py:rank"
STEPS = 12


def rank(place: Any, config: str, overrides: list[str]) -> int:
    """What a forked rank does."""
    from launch.cli import main

    raise SystemExit(main(["train", f"configs/{config}.py", *overrides]))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


def settings(run_dir: Path, pattern: str, *more: str) -> list[str]:
    drop = ("data.image_size", "objective.", "backbone.drop_path")
    given = chaos.overrides(run_dir, pattern, steps=STEPS, stage=1, workers=0)
    kept = [setting for setting in given if not setting.startswith(drop)]
    return [
        *kept, "epochs=none", "checkpoint.every_steps=1000", "tracking.log_every=3", "backbone.depth=3",
        "mto.ramp=1", "mto.rho0=0.8", *more,
    ]  # fmt: skip


def train(run_dir: Path, pattern: str, *more: str, world: int = 1, config: str = "mto_r_simmim_cifar") -> list[Outcome]:
    given = {"config": config, "overrides": settings(run_dir, pattern, *more)}
    outcomes = shared().run(CASE, world, given, timeout_s=120)
    assert [outcome.code for outcome in outcomes] == [0] * world, outcomes[0].output[-3000:]
    return outcomes


def lines(run_dir: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("exclude", ["unmoved", pytest.param("random", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_does(tmp_path: Path, pattern: str, exclude: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more = (f"mto.exclude={exclude}", "steps=4")
    train(one, pattern, *more)
    train(two, pattern, *more, "engine.zero_stage=3", "engine.activation_checkpointing=true", world=2)
    for name in ("loss", "loss_mto_spa", "loss_mto_e", "loss_mto_r"):
        assert [line[name] for line in lines(two)] == pytest.approx([line[name] for line in lines(one)], rel=2e-4)


def test_a_run_stopped_on_the_ramp_goes_on_exactly(tmp_path: Path, pattern: str) -> None:
    calm, asked = tmp_path / "calm", tmp_path / "asked"
    train(calm, pattern, world=2)
    given = {"config": "mto_r_simmim_cifar", "overrides": settings(asked, pattern)}
    attempt = shared().start(CASE, 2, given)
    while not (asked / "metrics.jsonl").exists() or len(lines(asked)) < 3:
        time.sleep(0.02)
    os.kill(attempt.pids[0], signal.SIGUSR2)
    assert [outcome.code for outcome in attempt.wait()] == [75, 75]
    stopped_at = chaos.last_step(asked)
    assert 3 <= stopped_at < STEPS
    train(asked, pattern, world=2)
    chaos.compare(calm, asked)
    for run_dir in (calm, asked):
        assert [line["mto_ramp"] for line in lines(run_dir)] == pytest.approx([s / STEPS for s in range(STEPS)])
    assert lines(calm)[0]["loss_mto_spa"] == 0 < lines(calm)[1]["loss_mto_spa"]


@pytest.mark.slow
def test_half_precision_keeps_the_ramp_and_a_frozen_token_exact_and_figures_are_written(
    tmp_path: Path, pattern: str
) -> None:
    run_dir = tmp_path / "run"
    more = ("steps=7", "engine.precision=bf16", "engine.zero_stage=3", "mto.frozen_token=3", "tracking.panels_every=5")
    train(run_dir, pattern, *more, world=2, config="mto_r_mae_cifar")
    (checkpoint,) = (run_dir / "ckpt").iterdir()
    found = {"objective.mto.ramp": torch.empty(1), "objective.decoder.mask_token": torch.empty(128)}
    for name, values in found.items():
        Reader(checkpoint).fill(FIXED, name, 0, values)
    assert torch.equal(found["objective.mto.ramp"], torch.tensor([6 / 7]))
    norm = found["objective.decoder.mask_token"].norm().item()
    written = lines(run_dir, "inspections")
    assert [line["step"] for line in written] == [0, 5, 7]
    for line in written:
        assert line["heterogeneity"]["token_norm"] == pytest.approx(norm, rel=1e-5)
        assert line["heterogeneity"]["excluded"] == [round(0.8 * share * 48) for share in (1, 2 / 3, 1 / 3, 0)]
