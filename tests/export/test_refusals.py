from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.export import to_timm
from pretrain.export.export import export
from pretrain.export.report import ExportError
from pretrain.export.to_timm import check_in_timm
from tests.engine.load_cases import save
from tests.export.cases import SMALL, encoder, written


def test_what_exists_is_replaced_only_by_force(tmp_path: Path) -> None:
    save(tmp_path / "first", 3)
    out = tmp_path / "vit.safetensors"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json exists.*--force"):
        export(tmp_path / "first", "timm", out)
    assert (tmp_path / "config.json").read_text() == "{}"
    export(tmp_path / "first", "timm", out, force=True)
    with pytest.raises(ConfigError, match="--force"):
        export(tmp_path / "first", "timm", out)


@pytest.mark.parametrize(
    ("to", "out", "says"), [("hf", "a.safetensors", "there are timm, huggingface"), ("timm", "a.pth", "safetensors")]
)
def test_other_targets_and_pickled_files_are_refused(tmp_path: Path, to: str, out: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        export(tmp_path / "none", to, tmp_path / out)


def _rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.0.attn.qkv.wieght"] = tensors.pop("blocks.0.attn.qkv.weight")


def _transpose(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.1.attn.proj.weight"] = tensors["blocks.1.attn.proj.weight"].T.contiguous()


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.1.mlp.fc1.weight"] = tensors["blocks.1.mlp.fc1.weight"].T.contiguous()


def _add_mask_token(tensors: dict[str, torch.Tensor]) -> None:
    tensors["mask_token"] = torch.zeros(1, 1, 48)


def _lose(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["norm.bias"]


@pytest.mark.parametrize(
    ("corrupt", "says"),
    [
        (_rename, "misses .*qkv.weight.* does not know .*wieght"),
        (_transpose, "other values in .*blocks.1.attn.proj.weight"),
        (_reshape, "other shapes.*fc1"),
        (_add_mask_token, "does not know .*mask_token"),
        (_lose, "misses .*norm.bias"),
    ],
)
def test_a_file_that_is_not_our_encoder_is_refused_and_nothing_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrupt: Any, says: str
) -> None:
    def spoil(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        corrupt(tensors)
        save_file(tensors, path, metadata)

    monkeypatch.setattr(to_timm, "save_file", spoil)
    with pytest.raises(ExportError, match=f"(?s){says}"):
        written(encoder(ViTConfig("tiny", **SMALL), (32, 32)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_right_tensors_in_a_model_that_computes_otherwise_are_refused(tmp_path: Path) -> None:
    loaded = encoder(ViTConfig("tiny", **SMALL), (32, 32))
    report = written(loaded, tmp_path)
    with pytest.raises(ExportError, match="features that differ by"):
        check_in_timm(report.weights, loaded.backbone, report.architecture, report.model_args | {"num_heads": 4})
    loaded.backbone.mean = (0.5, 0.5, 0.5)  # what timm is given; the encoder still normalises as it was built to
    with pytest.raises(ExportError, match="features that differ by"):
        check_in_timm(report.weights, loaded.backbone, report.architecture, report.model_args)


def test_without_timm_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ConfigError("timm is not installed; install it: pip install timm")

    monkeypatch.setattr(to_timm, "import_timm", absent)
    save(tmp_path / "first", 3)
    with pytest.raises(ConfigError, match="pip install timm"):
        export(tmp_path / "first", "timm", tmp_path / "a.safetensors")
