"""The harness that compares arms: its statistics by hand, its arms by the product's own config, and real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.claims.__main__ import CLAIMS, main
from benchmarks.claims.one_run import ROOT
from benchmarks.claims.statistics_of_seeds import interval, rauc, steps_to, verdict
from pretrain.config import load_config


def test_the_interval_of_three_seeds_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["plus_minus"] == pytest.approx(4.303 / 3**0.5)


def test_an_interval_with_zero_in_it_is_no_effect():
    assert verdict(interval([1.0, 2.0, 3.0])) == "no effect seen"
    assert verdict(interval([2.0, 2.1, 2.2])) == "higher"
    assert verdict(interval([-2.0, -2.1, -2.2])) == "lower"
    assert verdict(interval([5.0])) == "one seed: nothing can be said"


def test_rauc_counts_what_is_above_the_untrained_baseline_on_common_steps():
    base = [(0, 10.0), (10, 20.0), (20, 30.0)]  # 200 above the floor
    assert rauc(base, base) == 1.0
    assert rauc([(0, 10.0), (10, 30.0), (20, 30.0), (40, 99.0)], base) == pytest.approx(1.5)
    assert rauc(base, [(0, 10.0), (10, 10.0)]) is None


def test_the_target_is_reached_between_two_points_at_once_or_never():
    curve = [(0, 10.0), (10, 20.0)]
    assert (steps_to(curve, 15.0), steps_to(curve, 5.0), steps_to(curve, 21.0)) == (5.0, 0, None)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_arm_is_a_config_and_no_two_are_the_same(name: str):
    claim = CLAIMS[name]
    configs = [repr(load_config(str(ROOT / claim.config), list(arm.settings))) for arm in claim.arms.values()]
    assert len(set(configs)) == len(configs)
    assert claim.baseline in claim.arms


def test_arms_without_the_baseline_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["color", "--small", "--arms", "green"])
    assert "with uniform among them" in capsys.readouterr().err


@pytest.mark.slow
def test_small_compares_real_runs_and_a_second_call_makes_none_again(tmp_path: Path):
    words = ["color", "--small", "--seeds", "1", "--arms", "uniform,green", "--out", str(tmp_path)]
    words += ["--runs", str(tmp_path / "runs")]
    main(words)
    first = json.loads((tmp_path / "claims-color-small.json").read_text())["arms"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert [step for step, _ in first["green"]["runs"]["0"]["curve"]] == list(range(0, 25, 3))
    assert first["green"]["runs"]["0"]["loss"] != first["uniform"]["runs"]["0"]["loss"]
    assert "| `green` |" in (tmp_path / "claims-color-small.md").read_text()
    assert len(Image.open(tmp_path / "claims-color-small.png").convert("RGB").getcolors(1 << 20) or []) > 4
    main(words)
    assert json.loads((tmp_path / "claims-color-small.json").read_text())["arms"] == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    with pytest.raises(SystemExit):
        main([*words, "--set", "optim.clip_norm=2.0"])
