from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from masking.mask import Grid
from pretrain.backbones.positions import resize_positions
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.export.export import export, resized, write_export
from pretrain.export.to_timm import timm_architecture
from pretrain.patches import normalize
from pretrain.timm_shim import import_timm
from tests.engine.load_cases import save
from tests.export.cases import SMALL, encoder, images_of, sequence_of, written
from tests.syntax import ROOT


@pytest.fixture(scope="module")
def timm() -> Any:
    return import_timm()


@pytest.mark.parametrize(
    ("backbone", "architecture"),
    [
        (ViTConfig("tiny"), "vit_tiny_patch16_224"),
        (ViTConfig("small", positions="learned"), "vit_small_patch16_224"),
        pytest.param(ViTConfig("base"), "vit_base_patch16_224", marks=pytest.mark.slow),
        pytest.param(ViTConfig("large"), "vit_large_patch16_224", marks=pytest.mark.slow),
        pytest.param(ViTConfig("huge", patch_size=14), "vit_huge_patch14_224", marks=pytest.mark.slow),
    ],
)
def test_a_published_shape_loads_by_its_name_alone(
    tmp_path: Path, timm: Any, backbone: ViTConfig, architecture: str
) -> None:
    loaded = encoder(backbone)
    report = written(loaded, tmp_path)
    assert (report.architecture, report.model_args) == (architecture, {})
    model = timm.create_model(architecture, num_classes=0, checkpoint_path=str(report.weights)).eval()
    images = images_of(loaded)
    ours, theirs = sequence_of(loaded, images), model.forward_features(normalize(images, (0.4,) * 3, (0.3,) * 3))
    assert torch.allclose(theirs, ours, rtol=0, atol=1e-5 * float(ours.abs().max()))
    assert report.parity.max_difference <= 1e-5 * report.parity.scale
    assert report.parity.loaded == len(model.state_dict())


@pytest.mark.parametrize(
    ("backbone", "size", "in_chans", "architecture", "args"),
    [
        (ViTConfig("tiny", patch_size=8, **SMALL), (64, 64), 3, "vit_tiny_patch16_224",
         {"img_size", "patch_size", "embed_dim", "depth", "num_heads"}),
        (ViTConfig("small", depth=2), (32, 64), 1, "vit_small_patch16_224",
         {"img_size", "in_chans", "embed_dim", "depth", "num_heads"}),
        (ViTConfig("tiny", registers=3, layer_scale=0.1), (48, 32), 3, "vit_tiny_patch16_224",
         {"img_size", "init_values", "reg_tokens", "no_embed_class"}),
        (ViTConfig("small", patch_size=14, registers=4, layer_scale=1e-5), (28, 28), 3,
         "vit_small_patch14_reg4_dinov2", {"img_size"}),
        (ViTConfig("base", class_token=False, registers=4, depth=1), (32, 32), 3, "vit_base_patch16_reg4_gap_256",
         {"img_size", "global_pool", "fc_norm", "embed_dim", "depth", "num_heads"}),
        (ViTConfig("tiny", class_token=False, positions="learned"), (32, 32), 3, "vit_tiny_patch16_224",
         {"img_size", "class_token", "global_pool", "fc_norm"}),
        (ViTConfig("small", patch_size=8), (16, 16), 3, "vit_small_patch8_224", {"img_size"}),
        (ViTConfig("tiny", patch_size=20), (40, 40), 3, "vit_tiny_patch16_224", {"img_size", "patch_size"}),
    ],
)  # fmt: skip
def test_any_shape_loads_by_name_and_arguments_and_from_its_folder(
    tmp_path: Path,
    timm: Any,
    backbone: ViTConfig,
    size: tuple[int, int],
    in_chans: int,
    architecture: str,
    args: set[str],
) -> None:
    loaded = encoder(backbone, size, in_chans)
    report = written(loaded, tmp_path)
    assert report.architecture == architecture
    assert set(report.model_args) == args
    images = images_of(loaded)
    data = loaded.config.data
    ours, x = sequence_of(loaded, images), normalize(images, data.mean, data.std)
    by_name = timm.create_model(
        architecture, num_classes=0, checkpoint_path=str(report.weights), **report.model_args
    ).eval()
    by_folder = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pooled = ours[:, 0] if backbone.class_token else ours[:, backbone.registers :].mean(1)
    for model in (by_name, by_folder):
        assert torch.allclose(model.forward_features(x), ours, atol=1e-5 * float(ours.abs().max()))
        assert torch.allclose(model(x), pooled, atol=1e-5 * float(ours.abs().max()))


def test_the_printed_call_is_python_that_loads_the_file(tmp_path: Path, timm: Any) -> None:
    report = written(encoder(ViTConfig("tiny", **SMALL), (32, 48)), tmp_path)
    call = ast.parse(report.call, mode="eval").body
    assert isinstance(call, ast.Call)
    called = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    model = timm.create_model(ast.literal_eval(call.args[0]), **called)
    assert model.patch_embed.img_size == (32, 48)
    assert report.call in str(report)
    assert "loaded / 0 missing / 0 unexpected, max difference" in str(report)
    assert "embed_dim" in str(report)


def test_a_classifier_for_fine_tuning_is_added_by_timm_and_all_else_isencoder(tmp_path: Path, timm: Any) -> None:
    loaded = encoder(ViTConfig("tiny", **SMALL), (32, 32))
    written(loaded, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=10)
    assert model.head.out_features == 10
    for name, tensor in loaded.backbone.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_mean_pooling_keeps_the_last_norm_where_timm_is_told_so(tmp_path: Path, timm: Any) -> None:
    loaded = encoder(ViTConfig("tiny", **SMALL), (32, 32))
    report = written(loaded, tmp_path)
    images = images_of(loaded)
    mean = sequence_of(loaded, images)[:, 1:].mean(1)
    by_file = {"checkpoint_path": str(report.weights), "num_classes": 0, **report.model_args}
    with pytest.raises(RuntimeError, match="fc_norm"):
        timm.create_model(report.architecture, global_pool="avg", **by_file)
    for source, options in (
        (report.architecture, by_file),
        (f"local-dir:{tmp_path}", {"pretrained": True}),
    ):
        model = timm.create_model(source, global_pool="avg", fc_norm=False, **options).eval()
        assert torch.allclose(model(normalize(images, (0.4,) * 3, (0.3,) * 3)), mean, atol=1e-5)


def test_timm_reads_how_images_were_cut_and_scaled(tmp_path: Path, timm: Any) -> None:
    written(encoder(ViTConfig("tiny", **SMALL), (32, 48), 1), tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    found = timm.data.resolve_model_data_config(model)
    assert found["input_size"] == (1, 32, 48)
    assert tuple(found["mean"]) == (0.4,)
    assert tuple(found["std"]) == (0.3,)
    assert (found["interpolation"], found["crop_pct"], found["crop_mode"]) == ("bicubic", 1.0, "center")


def test_config_json_holds_what_the_hub_format_asks_for(tmp_path: Path) -> None:
    write_export(encoder(ViTConfig("tiny")), "timm", tmp_path / "a.safetensors", "apache-2.0")
    found = json.loads((tmp_path / "config.json").read_text())
    assert (found["architecture"], found["num_classes"], found["num_features"]) == ("vit_tiny_patch16_224", 0, 192)
    assert found["global_pool"] == "token"
    about = found["pretrained_cfg"]
    assert (about["first_conv"], about["classifier"], about["license"]) == ("patch_embed.proj", "head", "apache-2.0")
    assert about["input_size"] == [3, 224, 224]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("old", "new"), [((2, 3), (4, 5)), ((4, 4), (2, 6)), ((3, 3), (3, 3))])
def test_positions_are_resized_as_timm_resizes_them(
    timm: Any, class_token: bool, old: tuple[int, int], new: tuple[int, int]
) -> None:
    table = torch.randn(1, old[0] * old[1] + class_token, 16, generator=torch.Generator().manual_seed(0))
    expected = timm.layers.resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=int(class_token))
    assert torch.allclose(resize_positions(table, Grid(*old), Grid(*new)), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (32, 80)])
def test_timm_at_another_image_size_is_our_encoder_resized(tmp_path: Path, timm: Any, size: tuple[int, int]) -> None:
    loaded = encoder(ViTConfig("tiny", **SMALL), (32, 48))
    written(loaded, tmp_path)
    there = replace(loaded, backbone=resized(loaded.backbone, loaded.config, size))
    images = images_of(loaded, size)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=size).eval()
    ours = sequence_of(there, images)
    assert torch.allclose(model.forward_features(normalize(images, (0.4,) * 3, (0.3,) * 3)), ours, atol=1e-4)


def test_an_export_for_another_image_size_carries_that_size(tmp_path: Path, timm: Any) -> None:
    save(tmp_path / "first", 3)
    report = export(tmp_path / "first", "timm", tmp_path / "out", image_size=(64, 96))
    assert report.model_args["img_size"] == [64, 96]
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).patch_embed.grid_size == (4, 6)
    with pytest.raises(ConfigError, match="multiples of the patch size, 16"):
        export(tmp_path / "first", "timm", tmp_path / "other", image_size=(60, 96))


def test_a_run_is_exported_with_the_encoder_alone_as_tensors(tmp_path: Path) -> None:
    weights = save(tmp_path / "first", 3, ema=True)
    report = export(tmp_path / "first", "timm", tmp_path / "out" / "vit.safetensors", "model")
    assert (report.step, report.which) == (3, "model")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "vit.md", "vit.safetensors"]
    found = load_file(tmp_path / "out" / "vit.safetensors")
    assert found.keys() == {name.removeprefix("backbone.") for name in weights if name.startswith("backbone.")}
    assert not [name for name in found if "mask_token" in name or "decoder" in name]
    assert all(torch.equal(tensor, weights[f"backbone.{name}"]) for name, tensor in found.items())
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1, "as readable as the umask says"
    with safe_open(tmp_path / "out" / "vit.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "origin": "run first, step 3, model weights"}


def test_every_architecture_named_exists_in_timm(timm: Any) -> None:
    for size in ("tiny", "small", "base", "large", "huge"):
        for patch in (8, 14, 16, 20, 32):
            for registers, scale, token in ((0, None, True), (4, 1e-5, True), (4, None, False), (1, None, True)):
                config = ViTConfig(size, patch, token, registers, layer_scale=scale)
                assert timm.is_model(timm_architecture(config, Grid(2, 2), 3)[0])


def test_the_code_in_the_page_runs(tmp_path: Path, timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = encoder(ViTConfig("tiny"))
    write_export(tiny, "timm", tmp_path / "vit.safetensors")
    written(tiny, tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "export.md").read_text().replace("vit_base", "vit_tiny")
    found: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, found)
    inline = re.findall(r"`(timm\.create_model\(name.*?\))`", page)
    assert len(inline) == 1
    resized_file = eval(inline[0], {"timm": timm, "name": "vit_tiny_patch16_224"})
    assert resized_file.patch_embed.grid_size == (24, 24)
    assert torch.equal(resized_file.blocks[3].attn.qkv.weight, found["weights"]["blocks.3.attn.qkv.weight"])
    assert found["larger"].patch_embed.grid_size == (16, 20)
    assert found["classifier"].head.out_features == 10
    assert torch.equal(found["pooled"].norm.weight, found["weights"]["norm.weight"])
    assert found["preprocessing"]["std"] == [0.3] * 3
    trap = timm.create_model("local-dir:exported", pretrained=True, num_classes=10, global_pool="avg")
    assert bool((trap.fc_norm.weight == 1).all()), "the page says that timm starts with a fresh norm"
    assert len(found["weights"]) == len(found["encoder"].state_dict())
