"""A segmentation from its shards to its report: real processes, which learn, go on after a stop, and are measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from launch.cli import main
from pretrain.config import load_config, write_config
from pretrain.engine.published import encoder_of, read_newest
from pretrain.tracking.report import write_report
from tests import chaos
from tests.data.map_files import write_scenes
from tests.zygote import shared

CASE = "tests/finetune_cases.py:rank"
DIGEST = chaos.SAME.index("digest")


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scenes(tmp_path_factory.mktemp("shards"), 48)


def settings(runs_dir: Path, name: str, pattern: str, *more: str) -> list[str]:
    return [
        "configs/segment_camvid.py", f"runs_dir={runs_dir}", f"name={name}", f"data.train={pattern}",
        f"data.val={pattern}", "data.image_size=32,48", "data.batch_size=8", "data.map_void=255",
        "data.map_names=red,green,blue",
        "data.workers=0", "data.lanes=4", "data.block=16", "objective.pixel_classes=3", "objective.head_width=16",
        "objective.head_drop=0.1", "backbone.patch_size=4", "backbone.width=32", "backbone.depth=2", "backbone.heads=2",
        "optim.layer_decay=none", "optim.base_lr=0.2", "epochs=none", "engine.precision=fp32", "tracking.wandb=off",
        "tracking.panel_images=1", *more,
    ]  # fmt: skip


def lacuna(*arguments: str, world: int = 1) -> str:
    outcomes = shared().run(CASE, world, {"arguments": list(arguments)})
    assert [outcome.code for outcome in outcomes] == [0] * world, outcomes[0].output[-3000:]
    return outcomes[0].output


def lines(run_dir: Path) -> list[tuple[object, ...]]:
    return [
        tuple(json.loads(line)[key] for key in chaos.SAME)
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]


def test_colours_are_learnt_to_an_miou_above_90_percent_and_the_report_shows_it(tmp_path: Path, pattern: str) -> None:
    run = settings(tmp_path, "colours", pattern, "steps=30", "evaluation.every_steps=30", "evaluation.max_images=4")
    said = lacuna("finetune", "--from-scratch", *run)
    found = json.loads((tmp_path / "colours" / "segments-step-0000030.json").read_text())
    result = found["result"]
    assert result["miou"] > 0.9 and result["val_images"] == 48 and list(result["class_iou"]) == ["red", "green", "blue"]
    assert "of 3 classes" in said
    measured = [json.loads(line) for line in (tmp_path / "colours" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in measured] == [0, 30] and measured[0]["miou"] < 0.5 < measured[1]["miou"]
    html = write_report(tmp_path / "colours").read_text()
    assert "<h2>Segmentation</h2>" in html and f"mIoU <b>{100 * result['miou']:.1f} %</b>" in html
    assert "images, their true classes, and those predicted" in html and "Frozen features" not in html


@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["whole", "head alone"])
def test_a_run_that_goes_on_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been_stopped(
    frozen: bool, tmp_path: Path, pattern: str
) -> None:
    """A frozen encoder comes from the run's own checkpoint then, whatever has become of the weights it began with."""
    begin = []
    if frozen:
        lacuna("train", *settings(tmp_path, "pre", pattern, "steps=2"))
        begin = [f"init_from={tmp_path / 'pre'}", "init_parts=encoder", "objective.frozen=true"]
    run = settings(tmp_path, "run", pattern, "steps=9", "checkpoint.every_steps=4", "engine.ema_decay=0.9", *begin)
    run_dir = tmp_path / "run"
    lacuna("train", *run)
    ended, state = lines(run_dir), read_newest(run_dir, "model").state
    if frozen:
        source = encoder_of(read_newest(tmp_path / "pre", "model").state)
        assert all(torch.equal(value, encoder_of(state)[name]) for name, value in source.items())
        shutil.rmtree(tmp_path / "pre")
    for world in (2, 1):
        for path in [*(run_dir / "ckpt").glob("0000000008-*"), *(run_dir / "ckpt").glob("0000000009-*")]:
            shutil.rmtree(path)
        assert "step 4 of 9, from its checkpoint" in lacuna("train", *run, world=world)
        assert [line[DIGEST] for line in lines(run_dir)] == [line[DIGEST] for line in ended]
    assert lines(run_dir) == ended
    for name, value in read_newest(run_dir, "model").state.items():
        assert torch.equal(value, state[name]), name


def test_what_segments_nothing_or_has_no_maps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(load_config("configs/tiny_cpu.py"), tmp_path / "config.json")
    assert main(["segment", str(tmp_path)]) == 78
    assert "is a run of PixelMAEConfig, which segments nothing" in capsys.readouterr().err
    run = settings(tmp_path, "none", chaos.make_shards(tmp_path / "plain", images=20, per_shard=20), "steps=1")
    (refused,) = shared().run(CASE, 1, {"arguments": ["finetune", "--from-scratch", *run]})
    assert refused.code == 78 and "has a .seg.png member (there are cls, jpg)" in refused.output
