from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.export.export import write_export
from pretrain.init.dialects import channels_first, channels_last
from pretrain.init.fit import fit_encoder, fit_objective
from pretrain.init.foreign import read_encoder
from pretrain.objectives.mto_r import MtoRConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.timm_shim import ensure_torchvision
from tests.export.cases import SMALL, encoder, images_of, sequence_of, with_decoder, written

VIT = ViTConfig("tiny", **SMALL)


@pytest.fixture(scope="module")
def transformers() -> Any:
    ensure_torchvision()
    return pytest.importorskip("transformers", reason="needs transformers: pip install 'lacuna[export]'")


def test_transformers_gives_the_features_of_the_run(tmp_path: Path, transformers: Any) -> None:
    loaded = encoder(VIT, (32, 48))
    report = written(loaded, tmp_path, "huggingface")
    assert "by transformers" in str(report)
    model = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    images = images_of(loaded)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    ours = sequence_of(loaded, images)
    with torch.no_grad():
        assert torch.allclose(model(pixels).last_hidden_state, ours, rtol=0, atol=1e-5 * float(ours.abs().max()))


def test_transformers_masked_autoencoder_predicts_and_loses_as_the_run(tmp_path: Path, transformers: Any) -> None:
    loaded = with_decoder(encoder(VIT, (64, 64)))
    report = written(loaded, tmp_path, "huggingface-mae")
    assert "predictions differ by" in str(report) and "losses agree" in str(report)
    assert report.parity.max_difference is not None
    assert report.parity.max_difference <= 1e-5 * report.parity.scale
    model = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path)
    assert model.config.norm_pix_loss and model.config.mask_ratio == 0.5


def test_an_encoder_of_a_masked_autoencoder_loads_as_a_plain_one(tmp_path: Path, transformers: Any) -> None:
    loaded = with_decoder(encoder(VIT, (64, 64)))
    written(loaded, tmp_path, "huggingface-mae")
    state = transformers.ViTMAEModel.from_pretrained(tmp_path).state_dict()
    assert torch.equal(state["embeddings.cls_token"], loaded.backbone.state_dict()["cls_token"])


def test_an_export_to_transformers_is_read_back_whole(tmp_path: Path) -> None:
    loaded = with_decoder(encoder(VIT, (64, 64)))
    for to in ("huggingface", "huggingface-mae"):
        written(loaded, tmp_path / to, to)
        foreign = read_encoder(str(tmp_path / to))
        fitted = fit_encoder(foreign, loaded.backbone)
        assert all(torch.equal(fitted.state[name], tensor) for name, tensor in loaded.backbone.state_dict().items())
        assert foreign.normal == ((0.4,) * 3, (0.3,) * 3) and not foreign.notes
    assert loaded.objective is not None
    decoder = fit_objective(foreign, loaded.objective)
    assert all(torch.equal(decoder.state[name], tensor) for name, tensor in loaded.objective.state_dict().items())
    assert foreign.dropped == ("decoder.decoder_pos_embed",)


def test_names_are_those_both_major_versions_read_and_images_are_described(tmp_path: Path) -> None:
    written(encoder(VIT, (32, 48)), tmp_path, "huggingface")
    names = load_file(tmp_path / "model.safetensors")
    assert "encoder.layer.1.attention.attention.query.weight" in names and "layernorm.bias" in names
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["model_type"], settings["layer_norm_eps"], settings["image_size"]) == ("vit", 1e-6, [32, 48])
    images = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (images["size"], images["image_mean"]) == ({"height": 32, "width": 48}, [0.4, 0.4, 0.4])


def test_pixels_of_a_patch_are_reordered_and_back() -> None:
    head, projection = torch.arange(12.0)[:, None], torch.zeros(5, 3, 2, 2)
    last = channels_last(head, projection)
    assert last[:3, 0].tolist() == [0, 4, 8], "the first pixel of every channel"
    assert torch.equal(channels_first(last, projection), head)


@pytest.mark.parametrize(
    ("to", "change", "says"),
    [
        ("huggingface", {"backbone": replace(VIT, registers=2)}, "backbone.registers=2.*--to timm does"),
        ("huggingface", {"backbone": replace(VIT, class_token=False)}, "class_token=false"),
        ("huggingface-mae", {"mto": MtoRConfig()}, "mto, which acts"),
        ("huggingface-mae", {"objective": PixelMAEConfig(16, 1, 2, decoder_weights=(0.5,))}, "decoder_weights"),
    ],
)
def test_what_transformers_has_no_place_for_is_refused(
    tmp_path: Path, to: str, change: dict[str, Any], says: str
) -> None:
    loaded = with_decoder(encoder(VIT, (64, 64)))
    loaded = replace(loaded, config=replace(loaded.config, **change))
    with pytest.raises(ConfigError, match=says):
        write_export(loaded, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_its_masked_autoencoder_takes_square_images_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="square images only"):
        written(with_decoder(encoder(VIT, (32, 48))), tmp_path, "huggingface-mae")
