"""Readers that are not installed here are asked through the names and shapes they are known to have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.export import to_detectron2
from pretrain.export.export import TARGETS
from pretrain.export.report import ExportError
from pretrain.export.tensors import renamed
from pretrain.init.fit import fit_encoder
from pretrain.init.foreign import read_encoder
from pretrain.weights_file import read_state
from tests.export.cases import SMALL, encoder, written

VIT = ViTConfig("tiny", **SMALL)
D, N = 48, 16

# What the libraries themselves made of a ViT of this shape: mmpretrain 1.2.0, mmseg 1.2.2, detectron2's vit.py.
MMPRETRAIN = {
    "cls_token": (1, 1, D), "pos_embed": (1, N + 1, D), "patch_embed.projection.weight": (D, 3, 16, 16),
    "patch_embed.projection.bias": (D,), "ln1.weight": (D,), "ln1.bias": (D,),
    "layers.1.ln1.weight": (D,), "layers.1.ln1.bias": (D,), "layers.1.ln2.weight": (D,), "layers.1.ln2.bias": (D,),
    "layers.1.attn.qkv.weight": (3 * D, D), "layers.1.attn.qkv.bias": (3 * D,),
    "layers.1.attn.proj.weight": (D, D), "layers.1.attn.proj.bias": (D,),
    "layers.1.ffn.layers.0.0.weight": (4 * D, D), "layers.1.ffn.layers.0.0.bias": (4 * D,),
    "layers.1.ffn.layers.1.weight": (D, 4 * D), "layers.1.ffn.layers.1.bias": (D,),
}  # fmt: skip
MMSEG = MMPRETRAIN | {"layers.1.gamma_1": (D,), "layers.1.gamma_2": (D,)}
VITDET = {
    "backbone.net.pos_embed": (1, N + 1, D), "backbone.net.patch_embed.proj.weight": (D, 3, 16, 16),
    "backbone.net.patch_embed.proj.bias": (D,), "backbone.net.blocks.1.norm1.weight": (D,),
    "backbone.net.blocks.1.norm1.bias": (D,), "backbone.net.blocks.1.norm2.weight": (D,),
    "backbone.net.blocks.1.norm2.bias": (D,), "backbone.net.blocks.1.attn.qkv.weight": (3 * D, D),
    "backbone.net.blocks.1.attn.qkv.bias": (3 * D,), "backbone.net.blocks.1.attn.proj.weight": (D, D),
    "backbone.net.blocks.1.attn.proj.bias": (D,), "backbone.net.blocks.1.mlp.fc1.weight": (4 * D, D),
    "backbone.net.blocks.1.mlp.fc1.bias": (4 * D,), "backbone.net.blocks.1.mlp.fc2.weight": (D, 4 * D),
    "backbone.net.blocks.1.mlp.fc2.bias": (D,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("to", "key", "contract"),
    [("mmdet", "state_dict", MMPRETRAIN), ("mmseg", "state_dict", MMSEG), ("detectron2", "model", VITDET)],
)
def test_the_file_has_the_names_and_shapes_of_the_contract_and_no_others(
    tmp_path: Path, to: str, key: str, contract: dict[str, tuple[int, ...]]
) -> None:
    report = written(encoder(VIT, (64, 64)), tmp_path, to)
    found = read_state(tmp_path / "model.pth")[key]
    second = {name.replace(".1.", ".0.", 1): shape for name, shape in contract.items() if ".1." in name}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == contract | second
    assert f"{len(found)} loaded / 0 missing / 0 unexpected" in str(report)
    assert "contract" in str(report) or f"by {'mmseg' if to == 'mmseg' else 'mmpretrain'}" in str(report)


@pytest.mark.parametrize("to", ["mmdet", "mmseg"])
def test_an_export_is_read_back_as_the_encoder_it_was(tmp_path: Path, to: str) -> None:
    loaded = encoder(VIT, (64, 64))
    written(loaded, tmp_path, to)
    foreign = read_encoder(str(tmp_path / "model.pth"))
    fitted = fit_encoder(foreign, loaded.backbone)
    assert all(torch.equal(fitted.state[name], tensor) for name, tensor in loaded.backbone.state_dict().items())
    assert ("layers.0.gamma_1" in foreign.dropped) == (to == "mmseg"), "mmseg's factors are one, and no run needs them"


def test_mmseg_gets_the_layer_scale_of_a_run_that_has_it(tmp_path: Path) -> None:
    loaded = encoder(replace(VIT, layer_scale=0.1), (64, 64))
    written(loaded, tmp_path, "mmseg")
    found = read_state(tmp_path / "model.pth")["state_dict"]
    assert torch.equal(found["layers.1.gamma_2"], loaded.backbone.state_dict()["blocks.1.ls2.gamma"])
    with pytest.raises(ConfigError, match=r"layer_scale=0\.1"):
        written(loaded, tmp_path / "other", "mmdet")


def test_vitdet_gets_everything_but_class_token_and_last_norm(tmp_path: Path) -> None:
    loaded = encoder(VIT, (64, 64))
    report = written(loaded, tmp_path, "detectron2")
    assert "pretrain_img_size" in report.call and "left out: the class token and the last norm" in str(report)
    fitted = fit_encoder(read_encoder(str(tmp_path)), loaded.backbone, partial=True)
    assert fitted.fresh == ("cls_token", "norm.weight", "norm.bias")
    with pytest.raises(ConfigError, match="--image-size 48,48"):
        written(encoder(VIT, (32, 48)), tmp_path / "other", "detectron2")


def test_a_name_too_many_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = to_detectron2.detectron2_vit
    monkeypatch.setattr(to_detectron2, "detectron2_vit", lambda size: right(size) | {"backbone.net.norm.weight": (1,)})
    with pytest.raises(ExportError, match="wants other shapes: backbone"):
        written(encoder(VIT, (64, 64)), tmp_path / "new" / "out", "detectron2")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_of_ours_in_nobodys_place_is_refused() -> None:
    own = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ExportError, match="b of the encoder would be left out"):
        renamed(own, ["a"], lambda name: name)
    with pytest.raises(ExportError, match="has no c, which belongs in c"):
        renamed(own, ["a", "b", "c"], lambda name: name)


def test_the_help_names_every_target() -> None:
    from launch.export import TARGETS as NAMED

    assert list(NAMED) == list(TARGETS)
