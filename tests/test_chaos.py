"""A run that was killed is the run that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import chaos
from tests.soak import soak_campaign
from tests.zygote import shared


@pytest.mark.parametrize(
    ("stage", "background"), [(1, "true"), pytest.param(1, "false", marks=pytest.mark.slow)]
)  # G1 kills both kinds hundreds of times: benchmarks/goals.py
def test_a_run_killed_at_random_ends_bit_for_bit_like_the_one_left_in_peace(
    tmp_path: Path, stage: int, background: str
) -> None:
    pattern = chaos.make_shards(tmp_path / "shards")
    runs = {name: tmp_path / "runs" / name for name in ("calm", "stormy")}
    settings = {name: chaos.overrides(path, pattern, steps=60, stage=stage, workers=1) for name, path in runs.items()}
    settings["stormy"].append(f"checkpoint.background={background}")
    chaos.calm(shared(), settings["calm"])
    toll = chaos.stormy(shared(), settings["stormy"], runs["stormy"], kills=3, seed=stage, reach_s=4.0)
    assert toll.kills == 3
    found = chaos.compare(runs["calm"], runs["stormy"])
    assert found["metrics_lines"] == 60 and found["ledger_lines"] > 0


@pytest.mark.slow
def test_a_minute_of_kills_damage_full_disk_and_mute_wandb_changes_nothing() -> None:
    found = soak_campaign(1)
    assert found["failures"] == []
    assert found["kills"] > 0 and found["disk_full"] > 0 and found["ledger_lines"] > 0
