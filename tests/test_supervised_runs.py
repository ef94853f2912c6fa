"""A supervised run from its shards to its report: real processes, and the accuracy of its own head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.engine.load import load_backbone
from pretrain.tracking.report import write_report
from tests import chaos
from tests.zygote import shared

CASE = "tests/illama_cases.py:supervised_rank"


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


def settings(run_dir: Path, pattern: str, *more: str) -> list[str]:
    usual = chaos.overrides(run_dir, pattern, steps=6, stage=1, workers=0)
    kept = [text for text in usual if not text.startswith("objective.")]
    return [
        *kept, "epochs=none", "objective.num_classes=5", f"data.val={pattern}", "evaluation.every_steps=3",
        "evaluation.methods=knn,head", *more,
    ]  # fmt: skip


def test_two_ranks_measure_their_head_as_the_command_does_and_the_report_shows_it(
    tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    outcomes = shared().run(CASE, 2, {"overrides": settings(run_dir, pattern, "evaluation.weights=model")})
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].output[-3000:]
    found = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [0, 3, 6] and all(0 <= line["head"] <= 1 for line in found)
    assert main(["evaluate", str(run_dir), "--weights", "model", "--untrained"]) == 0
    results = json.loads((run_dir / "evaluate-step-0000006.json").read_text())["results"]
    assert next(iter(results["untrained"])) == "head" and "linear" in results["untrained"]
    assert results["step 6 (model)"]["head"] == found[-1]["head"] and results["untrained"]["head"] == found[0]["head"]
    assert "head " in capsys.readouterr().out
    html = write_report(run_dir).read_text()
    assert "Own head" in html and f"{100 * found[-1]['head']:.1f}<small> %" in html


def test_another_objective_has_no_head_to_measure(tmp_path: Path, pattern: str) -> None:
    run_dir = tmp_path / "run"
    usual = chaos.overrides(run_dir, pattern, steps=1, stage=1, workers=0)
    (refused,) = shared().run(chaos.CASE, 1, {"overrides": [*usual, "evaluation.methods=knn,head"]})
    assert refused.code == 78 and "PixelMAEConfig has none; leave knn, linear, or both" in refused.output
    assert not run_dir.exists()
    (made,) = shared().run(chaos.CASE, 1, {"overrides": usual})
    assert made.code == 0, made.output[-3000:]
    assert main(["evaluate", str(run_dir), "--data", pattern, "--methods", "head"]) == 78
    assert load_backbone(run_dir).objective is None
