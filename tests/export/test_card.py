from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pretrain.backbones.vit import ViTConfig
from pretrain.export.export import export, write_export
from pretrain.objectives.align import MaskAlignConfig
from pretrain.objectives.teachers import TeacherConfig
from tests.engine.load_cases import CONFIG, save
from tests.export.cases import SMALL, encoder


def test_the_card_says_data_seed_recipe_results_licence_and_how_to_load(tmp_path: Path) -> None:
    run = tmp_path / "first"
    save(run, 3, config=replace(CONFIG, seed=11))
    records = [{"step": 2, "knn_top1": 0.25}, {"step": 4, "knn_top1": 0.75}]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = {"results": {"step 3 (model)": {"linear_top1": 0.5, "warnings": []}}}
    (run / "evaluate-step-0000003.json").write_text(json.dumps(found))
    report = export(run, "timm", tmp_path / "out", license_name="cc-by-4.0")
    card = report.card.read_text()
    assert report.card == tmp_path / "out" / "README.md"
    assert card.startswith("---\nlibrary_name: timm\nlicense: cc-by-4.0\n")
    recipe = ["seed: 11", "`shards/*.tar`", "fingerprint of the shards `f00d`", "Uniform(ratio=FixedRatio(hidden=0.5))"]
    for said in [*recipe, "knn_top1 0.25", "linear_top1 0.5", "These weights: cc-by-4.0.", report.call]:
        assert said in card, said
    assert str(report.parity) in card
    assert "0.75" not in card, "what was measured later is not of these weights"


def test_the_card_says_whose_licence_applies_beside_the_runs_own(tmp_path: Path) -> None:
    loaded = encoder(ViTConfig("tiny", **SMALL), (32, 32))
    teacher = TeacherConfig("vit_base_patch16_clip_224", weights="clip.safetensors")
    taught = replace(loaded.config, objective=MaskAlignConfig(teacher=teacher), init_from="mae.pth")
    card = write_export(replace(loaded, config=taught), "timm", tmp_path).card.read_text()
    assert "taught by `vit_base_patch16_clip_224 (clip.safetensors)`: the licence of the teacher's weights" in card
    assert "began as `mae.pth`: the licence of those weights applies" in card
    assert "No licence is named for these weights." in card
    own = replace(loaded.config, objective=MaskAlignConfig())
    assert "taught" not in write_export(replace(loaded, config=own), "timm", tmp_path / "own").card.read_text()
