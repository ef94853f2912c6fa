"""Runs whose masks follow the sample's boxes, the image, or the epoch: real processes, alike on any number of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from tests import chaos
from tests.zygote import Outcome, shared

CASE = "tests/test_mask_runs.py:rank"
SCHEDULED = """
import dataclasses
from masking.ratio import FixedRatio
from masking.strategies.coarse import Coarse
from masking.strategies.mixture import Mixture
from masking.strategies.schedule import Phase, Schedule
from masking.strategies.uniform import Uniform
from pretrain.config import load_config

def config():
    whole, half = FixedRatio(0.75), FixedRatio(0.5)
    later = Mixture((Uniform(half), Coarse(half)), weights=(1.0, 3.0))
    mask = Schedule((Phase(0.0, Uniform(whole)), Phase(1.0, later)))
    return dataclasses.replace(load_config("configs/tiny_cpu.py"), mask=mask)
"""


def rank(place: Any, arguments: list[str]) -> int:
    """What a forked rank does."""
    from launch.cli import main

    raise SystemExit(main(["train", *arguments]))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 photographs of noise, the even ones with a box."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with wds.ShardWriter(f"{folder}/boxed-%02d.tar", maxcount=30, verbose=0) as writer:
        for number in range(60):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((48, 40), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            boxes = [[8, 4, 30, 28]] if number % 2 == 0 else []
            writer.write({"__key__": f"{number:04d}", "jpg": buffer.getvalue(), "json": {"boxes": boxes}})
    return f"{folder}/*.tar"


def start(
    run_dir: Path, pattern: str, *more: str, world: int = 1, config: str = "configs/tiny_cpu.py"
) -> list[Outcome]:
    settings = chaos.overrides(run_dir, pattern, steps=6, stage=1, workers=0)
    arguments = [config, *settings, "backbone.drop_path=0", "tracking.panels_every=3", *more]
    return shared().run(CASE, world, {"arguments": arguments}, timeout_s=120)


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("boxes", ["mask=Region", "data.boxes=xyxy"]), ("gradient", ["mask=Guided", "mask.guided_by=gradient"])],
)
def test_guided_runs_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, pattern: str, name: str, settings: list[str]
) -> None:
    plain, one, two = (tmp_path / each for each in ("plain", "one", "two"))
    for outcomes in (start(plain, pattern), start(one, pattern, *settings), start(two, pattern, *settings, world=2)):
        assert [outcome.code for outcome in outcomes] == [0] * len(outcomes), outcomes[0].output[-3000:]
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)
    assert losses(one) != pytest.approx(losses(plain), rel=1e-4)
    assert json.loads((one / "config.json").read_text())["mask"]["type"].endswith(settings[0].partition("=")[2])


def test_a_schedule_changes_masks_and_ratio_at_its_epoch_and_a_stopped_run_goes_on_in_it(
    tmp_path: Path, pattern: str
) -> None:
    (tmp_path / "scheduled.py").write_text(SCHEDULED)
    config = str(tmp_path / "scheduled.py")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (outcome,) = start(whole, pattern, config=config)  # 24 of 60 images a step: the second phase begins at step 3
    assert outcome.code == 0, outcome.output[-3000:]
    assert start(tmp_path / "plain", pattern)[0].code == 0
    assert losses(whole)[:3] == losses(tmp_path / "plain")[:3]
    assert losses(whole)[3] != losses(tmp_path / "plain")[3]
    for steps in (4, 6):
        (outcome,) = start(parts, pattern, f"steps={steps}", "--allow-change", world=1, config=config)
        assert outcome.code == 0, outcome.output[-3000:]
    assert len(losses(parts)) == 6


def test_boxes_that_nobody_wants_and_masks_that_nobody_guides_are_refused_before_training(
    tmp_path: Path, pattern: str
) -> None:
    for settings, words in (
        (["data.boxes=xyxy"], "data.boxes=xyxy has no effect"),
        (["mask=Region"], "set data.boxes=xyxy or xywh"),
        (["mask=Guided"], "gives no importance of patches"),
        (["mask=ColourNoise"], "did you mean 'ColorNoise'"),
        (["mask=Coarse", "mask.unit=9"], "mask.unit=9 on a grid of 4 x 4"),
    ):
        (outcome,) = start(tmp_path / "run", pattern, *settings)
        assert outcome.code == 78 and words in outcome.output, outcome.output[-2000:]
        assert not (tmp_path / "run").exists()
