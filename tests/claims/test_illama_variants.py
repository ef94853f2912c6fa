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


def test_every_variant_is_a_config_of_one_size_whose_mask_falls_half_way_or_that_has_none():
    configs = [load_config(str(ROOT / plan.config), ["steps=100", *SAME, *plan.settings]) for plan in VARIANTS.values()]
    assert len(set(map(repr, configs))) == len(configs)
    assert {config.backbone.dimensions() for config in configs} == {(64, 4, 2)}
    masks = [getattr(config.backbone, "soft_mask", None) for config in configs]
    alphas = {None if mask is None else tuple(mask.alpha(step, 100, 1.0) for step in (0, 49, 50, 99)) for mask in masks}
    assert alphas == {None, (1.0, 1.0, 0.0, 0.0)}


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
