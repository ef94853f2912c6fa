"""Runs whose mask sets in on the way: real processes, stopped in the middle of the schedule and gone on with."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.engine.load import load_backbone
from pretrain.errors import ConfigError
from pretrain.export.export import export
from tests import chaos
from tests.zygote import shared

CASE = "tests/illama_cases.py:rank"
STEPS = 40


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


def settings(run_dir: Path, pattern: str, *more: str) -> list[str]:
    return [
        *chaos.overrides(run_dir, pattern, steps=STEPS, stage=1, workers=0), "epochs=none",
        "checkpoint.every_steps=1000", "tracking.log_every=3",
        "backbone.soft_mask.kind=linear", "backbone.soft_mask.cutoff=1", *more,
    ]  # fmt: skip


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_stopped_while_the_mask_sets_in_goes_on_exactly(tmp_path: Path, pattern: str) -> None:
    calm, asked = tmp_path / "calm", tmp_path / "asked"
    outcomes = shared().run(CASE, 2, {"overrides": settings(calm, pattern)})
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].output[-3000:]
    attempt = shared().start(CASE, 2, {"overrides": settings(asked, pattern)})
    while not (asked / "metrics.jsonl").exists() or len(lines(asked)) < 3:
        time.sleep(0.02)
    os.kill(attempt.pids[0], signal.SIGUSR2)
    assert [outcome.code for outcome in attempt.wait()] == [75, 75]
    stopped_at = chaos.last_step(asked)
    assert 3 <= stopped_at < STEPS
    alpha = float(load_backbone(asked, "model").backbone.get_buffer("alpha"))
    assert alpha == pytest.approx(np.linspace(1, 0, STEPS)[stopped_at - 1], abs=1e-7)  # of the last step that was made
    assert shared().run(CASE, 2, {"overrides": settings(asked, pattern)})[0].code == 0
    chaos.compare(calm, asked)
    for run_dir in (calm, asked):
        assert [line["alpha"] for line in lines(run_dir)] == pytest.approx(np.linspace(1, 0, STEPS), abs=1e-12)


def test_alpha_keeps_its_bits_in_bf16_at_every_stage_and_evaluation_sees_it(tmp_path: Path, pattern: str) -> None:
    for stage, more in ((1, ("evaluation.weights=ema",)), (3, ("engine.activation_checkpointing=true",))):
        run_dir = tmp_path / f"stage{stage}"
        given = settings(
            run_dir, pattern, "steps=7", "engine.precision=bf16", f"engine.zero_stage={stage}",
            "backbone.soft_mask.end=0.37", f"data.val={pattern}", "evaluation.every_steps=5", *more,
        )  # fmt: skip
        outcomes = shared().run(CASE, 2, {"overrides": given})
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].output[-3000:]
        for weights in ("model", "ema"):
            stored = load_backbone(run_dir, weights).backbone.get_buffer("alpha")
            assert torch.equal(stored, torch.tensor(0.37))
        assert len((run_dir / "evaluations.jsonl").read_text().splitlines()) == 3


def test_an_export_to_timm_is_refused_in_words(tmp_path: Path, pattern: str) -> None:
    run_dir = tmp_path / "run"
    assert shared().run(CASE, 1, {"overrides": settings(run_dir, pattern, "steps=2")})[0].code == 0
    with pytest.raises(ConfigError, match="run run trained Illama, and timm has no such architecture"):
        export(run_dir, "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
