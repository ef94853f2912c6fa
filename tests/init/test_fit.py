from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.positions import resize_positions
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.init.fit import fit_encoder
from pretrain.init.foreign import Foreign, read_encoder
from tests.engine.load_cases import CONFIG
from tests.init.cases import SQUARE, drawn, saved


def _foreign(config: Config, path: Path) -> Foreign:
    return read_encoder(saved(dict(drawn(config).backbone.state_dict()), path / "weights.pth"))


def _sized(height: int, width: int, config: Config = SQUARE) -> Config:
    return replace(config, data=replace(config.data, image_size=(height, width)))


@pytest.mark.parametrize("slots", [0, 1, 5])
def test_positions_of_the_same_grid_are_the_same_tensor(slots: int) -> None:
    table = torch.randn(1, slots + 12, 8)
    assert torch.equal(resize_positions(table, Grid(3, 4), Grid(3, 4)), table)


def test_positions_keep_every_bit_at_their_native_size(tmp_path: Path) -> None:
    config = replace(SQUARE, backbone=replace(SQUARE.backbone, positions="learned"))
    foreign = _foreign(config, tmp_path)
    fitted = fit_encoder(foreign, drawn(config).backbone)
    assert torch.equal(fitted.state["pos_embed"], foreign.encoder["pos_embed"])
    assert fitted.positions == "4x4 -> 4x4, as they are"


@pytest.mark.parametrize(("height", "width", "said"), [(32, 96, "2x6"), (96, 80, "6x5"), (128, 32, "8x2")])
def test_positions_are_resized_to_any_height_and_width(tmp_path: Path, height: int, width: int, said: str) -> None:
    backbone = drawn(_sized(height, width)).backbone
    foreign = _foreign(SQUARE, tmp_path)
    fitted = fit_encoder(foreign, backbone)
    backbone.load_state_dict(fitted.state)
    assert fitted.positions == f"4x4 -> {said}, resized" and fitted.fresh == ()
    assert torch.equal(fitted.state["pos_embed"][:, 0], foreign.encoder["pos_embed"][:, 0]), "the class token's stays"


def test_another_grid_of_as_many_patches_is_not_taken_for_the_same(tmp_path: Path) -> None:
    assert fit_encoder(_foreign(SQUARE, tmp_path), drawn(_sized(32, 128)).backbone).positions == "4x4 -> 2x8, resized"


def test_illamas_last_row_stays_the_class_tokens(tmp_path: Path) -> None:
    config = replace(SQUARE, backbone=IllamaConfig("tiny", width=32, depth=2, heads=2))
    foreign = _foreign(config, tmp_path)
    fitted = fit_encoder(foreign, drawn(_sized(96, 96, config)).backbone)
    assert torch.equal(fitted.state["pos_embed"][:, -1], foreign.encoder["pos_embed"][:, -1])
    assert fitted.positions == "4x4 -> 6x6, resized"


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        (ViTConfig("tiny", width=48, depth=2, heads=2), r"cls_token \[1, 1, 32\] where \[1, 1, 48\] is wanted"),
        (
            ViTConfig("tiny", width=32, depth=3, heads=2),
            r"lacks blocks\.2\.norm1\.weight, .* and 8 more\. Of 42 tensors 30",
        ),
        (
            ViTConfig("tiny", width=32, depth=1, heads=2),
            r"it has blocks\.1\.norm1\.weight, .*which this encoder has not",
        ),
        (ViTConfig("tiny", width=32, depth=2, heads=2, layer_scale=0.1), r"lacks blocks\.0\.ls1\.gamma"),
        (ViTConfig("tiny", patch_size=8, width=32, depth=2, heads=2), "patches of 16 px with 3 channels, and this run"),
    ],
)
def test_an_encoder_of_another_shape_is_refused_by_its_names(tmp_path: Path, backbone: ViTConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit_encoder(_foreign(SQUARE, tmp_path), drawn(replace(SQUARE, backbone=backbone)).backbone)


def test_other_channels_are_refused_in_words_and_begin_afresh_where_that_is_asked_for(tmp_path: Path) -> None:
    grey = replace(SQUARE, data=replace(SQUARE.data, in_chans=1, mean=(0.5,), std=(0.5,)))
    foreign, backbone = _foreign(SQUARE, tmp_path), drawn(grey).backbone
    with pytest.raises(ConfigError, match="with 3 channels, and this run patches of 16 px with 1"):
        fit_encoder(foreign, backbone)
    fitted = fit_encoder(foreign, backbone, partial=True)
    assert fitted.fresh == fitted.left == ("patch_embed.proj.weight",)
    own = backbone.state_dict()["patch_embed.proj.weight"]
    assert torch.equal(fitted.state["patch_embed.proj.weight"], own)


def test_an_empty_source_is_no_encoder() -> None:
    with pytest.raises(ConfigError, match="nowhere holds no encoder"):
        fit_encoder(Foreign({}, "nowhere", "no"), drawn(CONFIG).backbone)
