"""The harness that compares arms: its statistics by hand, its arms by the product's own config, and real runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.claims.__main__ import CLAIMS, in_turn, main
from benchmarks.claims.arms import Arm, Claim, Rivals
from benchmarks.claims.one_run import ROOT, Budget, early_heterogeneity, read, settings
from benchmarks.claims.result import result_of
from benchmarks.claims.statistics_of_seeds import interval, rauc, spearman, steps_to, verdict
from benchmarks.claims.table import table
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
def test_every_arm_is_a_config_and_no_two_are_the_same(name: str, tmp_path: Path):
    claim = CLAIMS[name]
    budget = Budget(100, 50, 10, tmp_path, ("data.train=train", "data.val=val", *claim.small))
    configs = {}
    for arm in claim.arms:
        told = settings(claim, arm, 0, budget)
        configs[arm] = load_config(str(ROOT / (claim.arms[arm].config or claim.config)), told)
    assert len({repr(dataclasses.replace(config, name="")) for config in configs.values()}) == len(configs)
    assert {config.steps for config in configs.values()} == {claim.steps(arm, 100) for arm in claim.arms}
    assert claim.baseline in claim.arms


def test_arms_without_the_baseline_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["color", "--small", "--arms", "green"])
    assert "with uniform among them" in capsys.readouterr().err


def test_a_run_waits_for_its_teacher_and_others_go_first():
    claim = Claim("", "", "b", {"pupil": Arm(teacher="t"), "b": Arm(), "t": Arm(teacher="b"), "other": Arm()})
    began: list[tuple[str, int]] = []
    done: set[tuple[str, int]] = set()

    def one_run(arm: str, seed: int) -> dict[str, Any]:
        began.append((arm, seed))
        teacher = claim.arms[arm].teacher
        assert teacher is None or (teacher, seed) in done
        done.add((arm, seed))
        return {"knn": 0.0}

    runs = in_turn(claim, list(claim.arms), 2, 1, one_run)
    assert began == [("b", 0), ("t", 0), ("pupil", 0), ("other", 0), ("b", 1), ("t", 1), ("pupil", 1), ("other", 1)]
    began.clear()
    done.clear()
    assert in_turn(claim, list(claim.arms), 2, 3, one_run) == runs
    assert len(began) == 8


def test_a_pupil_is_told_where_its_teacher_is_and_its_seconds_are_counted_with_the_teachers(tmp_path: Path):
    claim, budget = CLAIMS["maskalign"], Budget(10, 5, 10, tmp_path, ())
    _as_if_run(tmp_path / "mae-1", steps=10, images_per_s=8.0)
    _as_if_run(tmp_path / "random-1", steps=10, images_per_s=16.0)
    told = settings(claim, "random", 1, budget)
    assert f"objective.teacher.model={tmp_path / 'mae-1'}" in told
    found = read(claim, "random", 1, budget)
    assert (found["train_s"], found["with_teacher_s"]) == (5.0, 15.0)
    assert read(claim, "mae", 1, budget)["with_teacher_s"] == 10.0


def test_settings_of_the_objective_are_for_the_claims_own_config(tmp_path: Path):
    budget = Budget(10, 5, 10, tmp_path, ("objective.decoder_width=32", "backbone.width=96"))
    for arm, has in (("mae", True), ("random", False)):
        told = settings(CLAIMS["maskalign"], arm, 0, budget)
        assert ("objective.decoder_width=32" in told, "backbone.width=96" in told) == (has, True)


def test_finished_writes_what_is_there_and_leaves_out_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [
        "maskalign",
        "--small",
        "--finished",
        "--seeds",
        "2",
        "--out",
        str(tmp_path),
        "--runs",
        str(tmp_path / "r"),
    ]
    with pytest.raises(SystemExit):
        main(words)
    assert "has no finished run of mae" in capsys.readouterr().err
    _as_if_run(tmp_path / "r" / "mae-0", steps=24, images_per_s=8.0)
    _as_if_run(tmp_path / "r" / "random-1", steps=24, images_per_s=8.0)  # its teacher is not there
    main(words)
    assert list(json.loads((tmp_path / "claims-maskalign-small.json").read_text())["arms"]) == ["mae"]


def test_a_teacher_that_is_not_among_the_arms_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setitem(CLAIMS, "color", Claim("", "", "b", {"b": Arm(), "t": Arm(), "pupil": Arm(teacher="t")}))
    with pytest.raises(SystemExit):
        main(["color", "--small", "--arms", "b,pupil"])
    assert "t is the teacher of pupil" in capsys.readouterr().err


def test_ranks_correlate_as_by_hand_and_equal_values_share_theirs():
    assert spearman([(1, 10), (2, 30), (3, 20)]) == pytest.approx(0.5)
    assert spearman([(1, 1), (2, 8), (3, 27)]) == pytest.approx(1.0)
    assert spearman([(1, 4), (2, 4), (2, 1), (7, 3)]) == pytest.approx(-0.5)  # ranks 1 2.5 2.5 4 and 3.5 3.5 1 2
    assert spearman([(1, 4), (1, 3)]) is None


def test_early_heterogeneity_is_that_of_the_first_half_of_the_blocks_at_a_fifth_of_the_steps():
    lines = [
        {"step": step, "heterogeneity": {"entropy": [first, 0.5, 9.0, 9.0]}}
        for step, first in ((0, 0.9), (19, 0.1), (40, 0.7), (100, 0.3))
    ]
    assert early_heterogeneity(lines, 100) == pytest.approx(1 - 0.3)


@pytest.mark.parametrize(
    ("method", "rival", "words"),
    [
        ((30, 31, 30), (40, 41, 40), "not met"),
        ((40, 42, 40), (41, 41, 41), "met"),
        ((30, 32, 29), (31, 31, 30), "cannot be told"),
    ],
)
def test_half_the_steps_are_enough_only_where_the_baseline_would_not_pass_too(method, rival, words: str):
    claim = Claim("", "", "b", {"b": Arm(), "b2": Arm(times=2), "m": Arm()}, rivals=Rivals("m", "b2"))
    scores = {"b": (30, 31, 30), "b2": rival, "m": method}
    runs = {
        arm: {
            seed: {
                "loss": 1.0,
                "images": 80,
                "knn": score,
                "linear": score,
                "train_s": 1.0,
                "curve": [[0, 1], [10, score]],
            }
            for seed, score in enumerate(found)
        }
        for arm, found in scores.items()
    }
    assert result_of(claim, runs, 10)["claim"]["knn"]["words"].startswith(words + ":")


def test_a_baseline_that_ends_below_its_untrained_encoder_is_no_target_and_is_named():
    claim = Claim("", "", "b", {"b": Arm(), "m": Arm()})
    run = {"loss": 1.0, "images": 80, "linear": 20.0, "train_s": 1.0}
    runs = {
        "b": {0: {**run, "knn": 20.0, "curve": [[0, 25.0], [10, 20.0]]}},
        "m": {0: {**run, "knn": 26.0, "curve": [[0, 25.0], [10, 26.0]]}},
    }
    result = result_of(claim, runs, 10)
    assert result["arms"]["m"]["steps_to_target"] is None
    words = table(claim, {**result, "data": "x", "machine": "y"})
    assert "kNN of 25.0 %. These arms end below it: `b`. " in words


def _as_if_run(run_dir: Path, *, steps: int, images_per_s: float) -> None:
    """The files that a comparison reads of a run of MAE, batches of 8."""
    run_dir.mkdir(parents=True)
    lines = [{"step": n + 1, "loss": 1.0, "samples": 8 * (n + 1), "images_per_s": images_per_s} for n in range(steps)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = [{"step": step, "knn": 0.2, "linear": 0.3} for step in (0, steps)]
    (run_dir / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))


@pytest.mark.slow
def test_a_real_pupil_is_taught_by_the_baselines_run_of_its_seed(tmp_path: Path):
    words = ["maskalign", "--small", "--seeds", "1", "--arms", "ratio-0,mae", "--out", str(tmp_path)]
    main([*words, "--runs", str(tmp_path / "runs")])
    config = json.loads((tmp_path / "runs" / "ratio-0-0" / "config.json").read_text())
    assert config["objective"]["teacher"]["model"] == str(tmp_path / "runs" / "mae-0")
    rows = json.loads((tmp_path / "claims-maskalign-small.json").read_text())["arms"]
    pupil, teacher = rows["ratio-0"]["runs"]["0"], rows["mae"]["runs"]["0"]
    assert pupil["with_teacher_s"] == pytest.approx(pupil["train_s"] + teacher["train_s"])


@pytest.mark.slow
def test_real_runs_of_mto_r_are_inspected_at_a_fifth_and_compared_by_pixels_alone(tmp_path: Path):
    words = ["mto-r", "--small", "--seeds", "1", "--arms", "simmim,mto-r", "--out", str(tmp_path)]
    main([*words, "--runs", str(tmp_path / "runs")])
    found = json.loads((tmp_path / "claims-mto-r-small.json").read_text())
    for row in found["arms"].values():
        assert 0 < row["runs"]["0"]["heterogeneity"] < 1
    lines = [json.loads(line) for line in (tmp_path / "runs" / "mto-r-0" / "metrics.jsonl").read_text().splitlines()]
    pixels = [line["loss_pixel"] for line in lines[-2:]]
    assert found["arms"]["mto-r"]["runs"]["0"]["loss"] == pytest.approx(sum(pixels) / 2)
    assert [line["loss"] for line in lines[-2:]] != pixels
    inspections = (tmp_path / "runs" / "mto-r-0" / "inspections.jsonl").read_text().splitlines()
    assert 4 in [json.loads(line)["step"] for line in inspections]  # of 24


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
