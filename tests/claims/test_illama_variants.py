"""The benchmark that trains every iLLaMA variant: its plans by the product's own config, and real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.claims.one_run import ROOT
from benchmarks.illama_variants.__main__ import main
from benchmarks.illama_variants.plans import SAME, VARIANTS
from pretrain.config import load_config


def test_every_variant_is_a_config_with_a_mask_that_falls_in_one_step_or_none_and_all_but_one_are_of_one_size():
    settings = {name: ["steps=100", *SAME, *plan.settings] for name, plan in VARIANTS.items()}
    configs = {name: load_config(str(ROOT / VARIANTS[name].config), words) for name, words in settings.items()}
    assert len(set(map(repr, configs.values()))) == len(configs)
    assert {name for name, config in configs.items() if config.backbone.dimensions() != (64, 4, 2)} == {"B_wide"}
    masks = {name: getattr(config.backbone, "soft_mask", None) for name, config in configs.items()}
    assert {name for name, mask in masks.items() if mask is None} == {"E", "vit"}
    for name, mask in masks.items():
        cutoff = 75 if name == "B_wide" else 50
        assert mask is None or [mask.alpha(step, 100, 1.0) for step in (0, cutoff - 1, cutoff, 99)] == [1, 1, 0, 0]


def test_shards_that_are_missing_and_variants_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]):
    for words, reason in (("--train a.tar", "give both, or --small"), ("--only A,C", "choose among supervised")):
        with pytest.raises(SystemExit):
            main(words.split())
        assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_small_runs_are_trained_measured_and_a_second_call_makes_none_again(tmp_path: Path):
    words = ["--small", "--only", "supervised,E", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    main(words)
    first = json.loads((tmp_path / "illama-variants-small.json").read_text())["variants"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert first["supervised"]["jump"]["step"] == 31 and first["E"]["jump"] is None
    assert "head" in first["supervised"]["features"]["untrained"] and "head" not in first["E"]["features"]["trained"]
    assert "At step 31 the soft mask fell from 1 to 0" in (tmp_path / "illama-variants-small.md").read_text()
    assert len(Image.open(tmp_path / "illama-variants-small.png").getcolors(1 << 20) or []) > 4
    main(words)
    assert json.loads((tmp_path / "illama-variants-small.json").read_text())["variants"] == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
