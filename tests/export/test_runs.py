"""`lacuna export` of a run, and what comes of it as a source of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.backbones.saved import load_encoder
from pretrain.init.start import begin
from pretrain.model import build_model
from pretrain.objectives.mage import MAGEConfig
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from tests.engine.load_cases import CONFIG, save
from tests.init.cases import SQUARE, same


@pytest.mark.parametrize("to", ["timm", "huggingface", "plain", "mmdet", "mmseg"])
def test_an_export_is_where_another_run_may_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    weights = save(tmp_path / "first", 3)
    assert main(["export", str(tmp_path / "first"), "--to", to, "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "loaded / 0 missing / 0 unexpected" in said and "load it: " in said
    config = replace(CONFIG, name="second", init_from=str(tmp_path / "out"))
    model = build_model(config)
    start = begin(model.backbone, model.objective, config)
    ours = {name.removeprefix("backbone."): t for name, t in weights.items() if name.startswith("backbone.")}
    assert start is not None and same(ours, model.backbone)
    assert start.encoder.positions == "2x3 -> 2x3, as they are"


def test_a_decoder_travels_through_transformers_format_to_another_run(tmp_path: Path) -> None:
    weights = save(tmp_path / "first", 3, ema=True, config=SQUARE)
    out = ["--to", "huggingface-mae", "-o", str(tmp_path / "out"), "--weights", "model"]
    assert main(["export", str(tmp_path / "first"), *out]) == 0
    config = replace(SQUARE, name="second", init_from=str(tmp_path / "out"))
    model = build_model(config)
    begin(model.backbone, model.objective, config)
    assert same(weights, model)


def test_a_decoder_is_not_resized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "first", 3, config=SQUARE)
    asked = ["--to", "huggingface-mae", "-o", str(tmp_path / "out"), "--image-size", "96,96"]
    assert main(["export", str(tmp_path / "first"), *asked]) == 78
    assert "writes the decoder too" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_with_a_strangers_config_is_refused_and_a_file_in_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "first", 3)
    main(["export", str(tmp_path / "first"), "-o", str(tmp_path / "out")])
    (tmp_path / "out" / "config.json").write_text('{"model_type": "bert"}')
    config = replace(CONFIG, name="second", init_from=str(tmp_path / "out"))
    model = build_model(config)
    with pytest.raises(ValueError, match=r"model_type='bert'; of transformers' models clip, .* are read"):
        begin(model.backbone, model.objective, config)
    config = replace(config, init_from=str(tmp_path / "out" / "model.safetensors"))
    assert begin(model.backbone, model.objective, config) is not None


def test_an_encoder_of_tokens_has_the_plain_way_out_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = TokenViTConfig(TokenizerConfig("palette", patch_size=16), "tiny", width=32, depth=2, heads=2)
    config = replace(SQUARE, backbone=tokens, objective=MAGEConfig(decoder_depth=1, decoder_heads=2))
    weights = save(tmp_path / "first", 0, config=config)
    assert main(["export", str(tmp_path / "first"), "--to", "plain", "-o", str(tmp_path / "out")]) == 0
    ours = {name.removeprefix("backbone."): t for name, t in weights.items() if name.startswith("backbone.")}
    assert same(ours, load_encoder(tmp_path / "out"))
    assert "the licence of its weights applies" in (tmp_path / "out" / "README.md").read_text()
    for to, says in (("onnx", "only ViT and iLLaMA"), ("timm", "--to plain writes any encoder")):
        assert main(["export", str(tmp_path / "first"), "--to", to, "-o", str(tmp_path / to)]) == 78
        assert says in capsys.readouterr().err
