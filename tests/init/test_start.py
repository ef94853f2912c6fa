from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.checks import check
from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.init.start import begin
from pretrain.model import build_model
from pretrain.objectives.align import MaskAlignConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.objectives.simmim import SimMIMConfig
from tests.engine.load_cases import CONFIG, save
from tests.init.cases import SQUARE, as_mae, drawn, same, saved


def _named(source: str, config: Config = SQUARE, **change: object) -> Config:
    return replace(config, name="second", init_from=source, **change)  # type: ignore[arg-type]


def test_a_run_of_the_same_kind_gives_encoder_and_decoder(tmp_path: Path) -> None:
    weights = save(tmp_path / "first", 3)
    config = _named(str(tmp_path / "first"), CONFIG)
    model = build_model(config)
    start = begin(model.backbone, model.objective, config)
    assert start is not None and same(weights, model)
    assert "encoder   30 of 30 tensors from" in str(start) and "objective 19 of 19 tensors" in str(start)


def test_an_encoder_alone_leaves_the_decoder_as_it_was_drawn(tmp_path: Path) -> None:
    donor = drawn()
    source = saved(dict(donor.backbone.state_dict()), tmp_path / "mae_pretrain.pth")
    config = _named(source)
    model, untouched = build_model(config), build_model(config)
    start = begin(model.backbone, model.objective, config)
    assert same(dict(donor.backbone.state_dict()), model.backbone)
    assert same(dict(untouched.objective.state_dict()), model.objective)
    assert start is not None and start.facts["objective"] == "0 of 19"
    assert "objective 0 of 19 tensors, fresh" in str(start) and "positions 4x4 -> 4x4, as they are" in str(start)


def test_a_decoder_that_is_not_wanted_stays_in_the_file(tmp_path: Path) -> None:
    source = saved(as_mae(drawn()), tmp_path / "mae_visualize.pth")
    for parts, taken in (("all", "19 of 19"), ("encoder", "0 of 19")):
        config = _named(source, init_parts=parts)
        model = build_model(config)
        start = begin(model.backbone, model.objective, config)
        assert start is not None and start.facts["objective"] == taken


def test_a_decoder_of_another_shape_is_refused_or_taken_where_it_fits(tmp_path: Path) -> None:
    source = saved(as_mae(drawn()), tmp_path / "mae_visualize.pth")
    deeper = PixelMAEConfig(decoder_width=16, decoder_depth=2, decoder_heads=2)
    config = _named(source, objective=deeper)
    model = build_model(config)
    with pytest.raises(
        ConfigError, match=r"the objective in .* lacks decoder\.blocks\.1.*init_parts=encoder leaves it out"
    ):
        begin(model.backbone, model.objective, config)
    config = replace(config, init_parts="fitting")
    start = begin(model.backbone, model.objective, config)
    assert start is not None and start.facts["objective"] == "19 of 31"
    assert "decoder.blocks.1.norm1.weight" in start.facts["fresh"]


def test_an_objective_of_another_kind_starts_fresh_and_is_said_to(tmp_path: Path) -> None:
    save(tmp_path / "first", 3)
    config = _named(str(tmp_path / "first"), CONFIG, objective=SimMIMConfig())
    model = build_model(config)
    start = begin(model.backbone, model.objective, config)
    assert "the source's objective is PixelMAEConfig and this run's SimMIMConfig: it starts fresh" in str(start)


def test_a_teacher_that_averages_the_student_begins_as_the_student(tmp_path: Path) -> None:
    source = saved(dict(drawn().backbone.state_dict()), tmp_path / "a.pth")
    config = _named(source, objective=MaskAlignConfig())
    model = build_model(config)
    begin(model.backbone, model.objective, config)
    average = {n.partition("encoder.backbone.")[2]: t for n, t in model.objective.state_dict().items() if "ema." in n}
    own = model.backbone.state_dict()
    assert average and all(torch.equal(average[name], own[name]) for name in own)


def test_other_normalisation_is_said(tmp_path: Path) -> None:
    save(tmp_path / "first", 3)
    config = _named(str(tmp_path / "first"), CONFIG)
    config = replace(config, data=replace(config.data, mean=(0.5,) * 3))
    model = build_model(config)
    assert "mean and std of pixels were 0.485,0.456,0.406" in str(begin(model.backbone, model.objective, config))


def test_a_run_with_a_checkpoint_goes_on_without_its_source(tmp_path: Path) -> None:
    config = replace(CONFIG, runs_dir=str(tmp_path), init_from=str(tmp_path / "gone.pth"))
    with pytest.raises(ConfigError, match=r"gone\.pth does not exist; give a run's directory, an export"):
        check(config)
    save(config.run_dir, 3, config=config)
    check(config)
    model = build_model(config)
    assert begin(model.backbone, model.objective, config) is None


def test_what_cannot_be_meant_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init_parts=encoder has no effect without init_from"):
        check(replace(CONFIG, init_parts="encoder"))
    (tmp_path / "first").mkdir()
    with pytest.raises(ConfigError, match="is this run itself"):
        check(replace(CONFIG, runs_dir=str(tmp_path), init_from=str(tmp_path / "first")))
    check(replace(CONFIG, init_from="timm:vit_base_patch16_224.mae"))


def test_the_facts_are_json(tmp_path: Path) -> None:
    source = saved({**drawn().backbone.state_dict(), "head.weight": torch.zeros(3, 32)}, tmp_path / "a.pth")
    config = _named(source)
    model = build_model(config)
    start = begin(model.backbone, model.objective, config)
    assert start is not None and json.loads(json.dumps(start.facts))["left_out"] == ["head.weight"]
    assert "left out  head.weight" in str(start)
