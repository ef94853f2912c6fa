from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.init.fit import fit_encoder, fit_objective
from pretrain.init.foreign import read_encoder
from pretrain.init.start import begin
from pretrain.objectives.mage import MAGEConfig
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from tests.engine.load_cases import CONFIG, save
from tests.init.cases import SQUARE, as_mae, drawn, same, saved


def test_a_run_is_read_with_its_decoder_and_says_its_step(tmp_path: Path) -> None:
    weights = save(tmp_path / "first", 3, ema=True)
    foreign = read_encoder(str(tmp_path / "first"), "model")
    assert foreign.objective == "PixelMAEConfig" and "step 3, model weights" in foreign.origin
    assert foreign.state.keys() == weights.keys()
    assert all(torch.equal(foreign.state[name], tensor) for name, tensor in weights.items())
    assert (foreign.grid is not None) and (foreign.grid.height, foreign.grid.width) == (2, 3)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema", "state_dict_ema"])
def test_maes_file_with_a_decoder_is_read_whole(tmp_path: Path, key: str) -> None:
    model = drawn()
    foreign = read_encoder(saved(as_mae(model), tmp_path / "mae_visualize_vit_base.pth", key))
    assert same(fit_encoder(foreign, model.backbone).state, model.backbone)
    assert same(fit_objective(foreign, model.objective).state, model.objective)
    assert foreign.dropped == ("decoder_pos_embed",) and foreign.dialect.startswith("MAE's names")


def test_maes_published_file_is_an_encoder_without_a_decoder(tmp_path: Path) -> None:
    model = drawn()
    foreign = read_encoder(saved(dict(model.backbone.state_dict()), tmp_path / "mae_pretrain_vit_base.pth"))
    assert same(fit_encoder(foreign, model.backbone).state, model.backbone)
    assert foreign.objective is None and foreign.dialect == "timm's names"


def test_a_compiled_and_distributed_model_has_the_same_names(tmp_path: Path) -> None:
    model = drawn()
    state = {f"module._orig_mod.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    assert same(fit_encoder(read_encoder(saved(state, tmp_path / "a.pth")), model.backbone).state, model.backbone)


def test_maskaligns_student_is_read_without_heads_and_teacher(tmp_path: Path) -> None:
    model = drawn()
    others = {"distill_weights": torch.eye(2), "distill_heads.0.weight": torch.zeros(8, 32),
              "clip_model.vision_model.embeddings.class_embedding": torch.zeros(8)}  # fmt: skip
    foreign = read_encoder(saved({**model.backbone.state_dict(), **others}, tmp_path / "maskalign.pth"))
    assert same(fit_encoder(foreign, model.backbone).state, model.backbone)
    assert foreign.dialect == "MaskAlign's names" and set(foreign.dropped) == set(others)


def test_illamas_published_weights_are_known_by_their_names(tmp_path: Path) -> None:
    config = dataclasses.replace(SQUARE, backbone=IllamaConfig("tiny", width=32, depth=2, heads=2))
    model = drawn(config)
    model.backbone.get_buffer("alpha").zero_()
    theirs = {name: t for name, t in model.backbone.state_dict().items() if name not in ("alpha", "layout")}
    foreign = read_encoder(saved({**theirs, "head.weight": torch.zeros(10, 32)}, tmp_path / "illama.pth"))
    assert foreign.dialect == "iLLaMA's names" and foreign.dropped == ("head.weight",)
    assert same(fit_encoder(foreign, model.backbone).state, model.backbone)


def test_mages_encoder_and_decoder_are_read_with_the_one_class_it_gives(tmp_path: Path) -> None:
    tokens = TokenViTConfig(TokenizerConfig("palette", patch_size=16), "tiny", width=32, depth=2, heads=2)
    config = dataclasses.replace(SQUARE, backbone=tokens, objective=MAGEConfig(decoder_depth=1, decoder_heads=2))
    model = drawn(config)
    own, decoder = model.backbone.state_dict(), model.objective.state_dict()
    num = len(own["token_embed.weight"]) - 2
    rows = [*range(num), num + 76, num + 1000]
    table, bias = torch.randn(num + 1001, 32), torch.randn(1, 1, num + 1001)
    table[rows], bias[0, 0, rows] = own["token_embed.weight"], decoder["head.bias"]
    theirs = {"token_emb.word_embeddings.weight": table, "mlm_layer.bias": bias,
              "token_emb.position_embeddings.weight": own["pos_embed"][0],
              "decoder_pos_embed_learned": decoder["decoder.pos_embed"], "mask_token": torch.zeros(1, 1, 32),
              "cls_token": torch.zeros(1, 1, 32), "pos_embed": torch.zeros(1, 17, 32),
              "patch_embed.proj.weight": torch.zeros(1), "vqgan.encoder.conv_in.weight": torch.zeros(1)}  # fmt: skip
    theirs |= {name.replace("norm_pre.", "token_emb.LayerNorm."): own[name] for name in own
               if name.startswith(("norm_pre.", "blocks.", "norm."))}  # fmt: skip
    for ours, name in (("decoder.embed.", "decoder_embed."), ("decoder.blocks.", "decoder_blocks."),
                       ("decoder.norm.", "decoder_norm."), ("head.dense.", "mlm_layer.fc."),
                       ("head.norm.", "mlm_layer.ln.")):  # fmt: skip
        theirs |= {found.replace(ours, name): decoder[found] for found in decoder if found.startswith(ours)}
    foreign = read_encoder(saved(theirs, tmp_path / "mage.pth"))
    assert foreign.dialect == "MAGE's names" and "vqgan.encoder.conv_in.weight" in foreign.dropped
    assert same(fit_encoder(foreign, model.backbone).state, model.backbone)
    assert same(fit_objective(foreign, model.objective).state, model.objective)


def test_a_model_of_timms_in_the_hubs_cache_is_read_and_one_that_is_not_says_how_to_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"nothing is downloaded here.*hf download timm/vit_base_patch16_224\.mae"):
        read_encoder("timm:vit_base_patch16_224.mae")
    folder = tmp_path / "models--timm--vit_base_patch16_224.mae"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    model = drawn()
    save_file(dict(model.backbone.state_dict()), folder / "snapshots" / "abc" / "model.safetensors")
    foreign = read_encoder("vit_base_patch16_224.mae")
    assert same(fit_encoder(foreign, model.backbone).state, model.backbone)
    assert foreign.normal == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(ConfigError, match="did you mean 'vit_base_patch16_224'"):
        read_encoder("vit_base_patch16_242")


def test_settings_pickled_as_plain_names_are_read_and_a_strangers_object_is_not(tmp_path: Path) -> None:
    model = drawn()
    state = dict(model.backbone.state_dict())
    read_encoder(saved(state, tmp_path / "a.pth", args=argparse.Namespace(lr=1.0), epoch=3))
    with pytest.raises(ConfigError, match="code in a file is never run; give a safetensors file"):
        read_encoder(saved(state, tmp_path / "b.pth", config=CONFIG))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"layer1.0.conv1.weight": torch.zeros(1)}, "holds layer1.0.conv1.weight, .*no vision transformer under names"),
        ({"embeddings.patch_embeddings.projection.weight": torch.zeros(1)}, "give the folder, whose config"),
    ],
)
def test_what_is_no_vision_transformer_is_refused_with_its_names(
    tmp_path: Path, state: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_encoder(saved(state, tmp_path / "a.pth"))


def test_a_classifier_of_timms_with_mean_pooling_says_why_its_norm_does_not_fit(tmp_path: Path) -> None:
    model = drawn()
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: tensor
             for name, tensor in model.backbone.state_dict().items()}  # fmt: skip
    foreign = read_encoder(saved({**state, "head.weight": torch.zeros(10, 32)}, tmp_path / "tuned.pth"))
    with pytest.raises(ConfigError, match=r"lacks norm\.weight, norm\.bias; it was pooled by mean, and its fc_norm"):
        fit_encoder(foreign, model.backbone)
    fitted = fit_encoder(foreign, model.backbone, partial=True)
    assert fitted.fresh == ("norm.weight", "norm.bias")


def test_dinov2s_registers_and_scales_are_timms(tmp_path: Path) -> None:
    config = dataclasses.replace(
        SQUARE, backbone=ViTConfig("tiny", registers=2, layer_scale=0.1, width=32, depth=2, heads=2)
    )
    model = drawn(config)
    foreign = read_encoder(saved({**model.backbone.state_dict(), "mask_token": torch.zeros(1, 32)}, tmp_path / "a.pth"))
    assert foreign.dropped == ("mask_token",)
    assert same(fit_encoder(foreign, model.backbone).state, model.backbone)
    assert begin(model.backbone, model.objective, config) is None, "nothing is named, so nothing is filled"
