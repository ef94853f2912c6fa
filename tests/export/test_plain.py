from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.saved import load_encoder
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.init.fit import fit_encoder
from pretrain.init.foreign import read_encoder
from tests.export.cases import SMALL, encoder, images_of, sequence_of, written


@pytest.mark.parametrize(
    "backbone",
    [
        IllamaConfig("tiny", **SMALL),
        IllamaConfig("tiny", mode="exact", soft_mask=None, unmasked_blocks=(1,), **SMALL),
        IllamaConfig("tiny", mode="prefix", soft_mask=None, **SMALL),
        ViTConfig("tiny", class_token=False, registers=2, layer_scale=0.1, **SMALL),
    ],
)
def test_any_encoder_comes_back_by_one_call(tmp_path: Path, backbone: IllamaConfig | ViTConfig) -> None:
    loaded = encoder(backbone, (32, 48))
    report = written(loaded, tmp_path, "plain")
    again, images = load_encoder(tmp_path), images_of(loaded)
    with torch.no_grad():
        assert torch.equal(again(again.embed(images)).sequence, sequence_of(loaded, images))
    assert not again.training and report.parity.max_difference == 0
    scope = {"images": images}
    with torch.no_grad():
        exec(report.call, scope)
    assert torch.equal(scope["features"], sequence_of(loaded, images)), "the printed lines are Python that loads it"


def test_how_far_a_mask_has_set_in_travels_with_the_weights(tmp_path: Path) -> None:
    loaded = encoder(IllamaConfig("tiny", **SMALL), (32, 32))
    loaded.backbone.get_buffer("alpha").fill_(0.25)
    written(loaded, tmp_path, "plain")
    assert float(load_encoder(tmp_path).get_buffer("alpha")) == 0.25


def test_weights_of_another_mask_are_refused(tmp_path: Path) -> None:
    written(encoder(IllamaConfig("tiny", **SMALL), (32, 32)), tmp_path, "plain")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["backbone"] |= {"mode": "exact", "soft_mask": None}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="does not hold the encoder that its config"):
        load_encoder(tmp_path)


def test_a_folder_of_another_kind_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json cannot be read.*--to plain"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')
    with pytest.raises(ConfigError, match="does not say format=lacuna-encoder"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "lacuna-encoder"}')
    with pytest.raises(ConfigError, match="does not describe an encoder"):
        load_encoder(tmp_path)


def test_a_config_that_names_a_strangers_type_is_not_imported(tmp_path: Path) -> None:
    written(encoder(ViTConfig("tiny", **SMALL), (32, 32)), tmp_path, "plain")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["backbone"]["type"] = "os:system"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="only types of pretrain and masking"):
        load_encoder(tmp_path)


def test_a_plain_export_is_a_source_of_weights(tmp_path: Path) -> None:
    loaded = encoder(IllamaConfig("tiny", **SMALL), (32, 48))
    written(loaded, tmp_path, "plain")
    fitted = fit_encoder(read_encoder(str(tmp_path)), loaded.backbone)
    assert fitted.positions == "2x3 -> 2x3, as they are" and fitted.fresh == ()


def test_a_lost_tensor_is_named(tmp_path: Path) -> None:
    written(encoder(ViTConfig("tiny", **SMALL), (32, 32)), tmp_path, "plain")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["norm.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"norm\.bias"):
        load_encoder(tmp_path)
