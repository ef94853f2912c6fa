"""What `lacuna evaluate` can be pointed at: the same encoder by another road gives the same features."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretrain.engine.load import load_backbone
from pretrain.errors import ConfigError
from pretrain.evaluation.features import extract
from pretrain.evaluation.foreign_encoder import open_foreign
from pretrain.evaluation.sources import is_run, open_source
from pretrain.evaluation.timm_encoder import TimmEncoder
from pretrain.timm_shim import import_timm
from tests.engine.load_cases import CONFIG, save
from tests.init.cases import SQUARE, as_mae, drawn, saved


def images_of(size, n=3):
    rng = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=rng), torch.arange(n))]


def test_a_file_of_maes_authors_gives_the_features_of_the_encoder_it_was_made_of(tmp_path: Path) -> None:
    model = drawn(replace(SQUARE, backbone=replace(SQUARE.backbone, width=128)))
    source = open_source(saved(as_mae(model), tmp_path / "mae.pth"))
    assert (source.label, source.data.image_size) == ("weights", (64, 64))
    assert any("heads" in note for note in source.notes) and any("normalised" in note for note in source.notes)
    batches = images_of((64, 64))
    torch.testing.assert_close(
        extract(source.measured[0], batches).features, extract(model.backbone, batches).features, atol=1e-5, rtol=1e-5
    )
    untrained = source.untrained()[0]
    assert not torch.allclose(extract(untrained, batches).features, extract(model.backbone, batches).features)


def test_an_encoder_that_is_not_whole_is_refused_by_its_tensors(tmp_path: Path) -> None:
    state = as_mae(drawn())
    state.pop("norm.weight")
    with pytest.raises(ConfigError, match=r"norm\.weight are missing"):
        open_foreign(saved(state, tmp_path / "mae.pth"))
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="no vision transformer"):
        open_foreign(str(tmp_path / "x.safetensors"))


def test_a_run_is_told_from_an_export(tmp_path: Path) -> None:
    save(tmp_path / "first", 7)
    source = open_source(str(tmp_path / "first"))
    assert (source.label, source.data, source.config) == ("step 7 (model)", CONFIG.data, CONFIG)
    loaded = load_backbone(tmp_path / "first").backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in source.measured[0].state_dict().items())
    (tmp_path / "export").mkdir()
    save_file({"x": torch.zeros(2)}, tmp_path / "export" / "model.safetensors")
    assert is_run(tmp_path) and not is_run(tmp_path / "export") and not is_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ("runs/nowhere", {}, "runs/nowhere does not exist; give the directory of a run"),
        ("timm:vit_tinny_patch16_224", {}, "did you mean 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224", {"step": 3}, "--step=3 has no effect"),
        ("timm:vit_tiny_patch16_224", {"weights": "model"}, "--weights=model has no effect"),
    ],
)
def test_a_source_that_is_not_there_or_an_option_without_effect_is_refused(given, options, says) -> None:
    with pytest.raises(ConfigError, match=says):
        open_source(given, **options)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_features_of_a_model_of_timms_are_the_mean_of_its_own_forward_features(name: str) -> None:
    options = {"img_size": 32, "depth": 2} if name.startswith("vit") else {}
    model = import_timm().create_model(name, num_classes=0, **options).eval()
    encoder, batches = TimmEncoder(model), images_of((32, 32))
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        found = model.forward_features((batches[0][0] / 255 - mean) / std)
    expected = found[:, 1:].mean(1) if found.ndim == 3 else found.mean((2, 3))
    torch.testing.assert_close(extract(encoder, batches).features, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"layer=1: of a model of timm's the end alone"):
        extract(encoder, batches, layer=1)
