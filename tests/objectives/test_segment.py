"""Segmentation: shapes and arithmetic of both heads, what the loss counts, and what a frozen encoder is left as."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masking.attention import op
from masking.mask import Grid, Mask
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.checks import check
from pretrain.config import Config, load_config
from pretrain.errors import ConfigError
from pretrain.flops import sizes_of
from pretrain.objectives.segment import SegmentConfig, pixel_cross_entropy
from pretrain.types import Labels
from tests.objectives.plain import MEAN, STD
from tests.objectives.test_contract import COUNTED
from tests.syntax import ROOT

GRID, PATCH = Grid(3, 5), 8  # odd on purpose: the coarsest level is 2 x 3
VIT = ViTConfig("tiny", patch_size=PATCH, width=48, depth=4, heads=4)
ILLAMA = IllamaConfig("tiny", patch_size=PATCH, width=48, depth=4, heads=4)
SMALL = SegmentConfig(pixel_classes=5, head_width=24)
HEADS = [dataclasses.replace(SMALL, head=head) for head in ("linear", "upernet")]
every_head = pytest.mark.parametrize("config", HEADS, ids=["linear", "upernet"])


def built(config: SegmentConfig, encoder: ViTConfig | IllamaConfig = VIT):
    torch.manual_seed(0)
    backbone = encoder.build(GRID, 3, MEAN, STD)
    return backbone, config.build(backbone)


def images_of(number: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def loss_of(backbone, objective, images, maps) -> torch.Tensor:
    target = objective.target(images, Labels.single(torch.full((len(images),), -1), maps))
    losses, _ = objective(backbone, images, Mask.of_nothing(len(images), GRID), target)
    return losses["pixel"]


@every_head
@pytest.mark.parametrize("encoder", [VIT, ILLAMA, dataclasses.replace(VIT, depth=1)], ids=["vit", "illama", "shallow"])
def test_every_pixel_has_a_score_of_every_class_on_grids_that_are_not_square(config, encoder) -> None:
    backbone, objective = built(config, encoder)
    scores = objective.segment(backbone, images_of())
    assert scores.shape == (2, 5, 24, 40) and scores.dtype == torch.float32 and not scores.requires_grad
    loss_of(backbone, objective, images_of(), torch.randint(0, 5, (2, 24, 40), dtype=torch.uint8)).sum().backward()
    for name, value in (*backbone.named_parameters(), *objective.named_parameters()):
        assert value.grad is not None, name


def test_the_linear_head_is_a_linear_layer_on_each_patch_and_upernets_levels_differ_in_size() -> None:
    backbone, objective = built(HEADS[0])
    tokens = backbone(backbone.embed(images_of())).tokens
    layer = objective.head.classify
    want = torch.nn.functional.linear(tokens, layer.weight[:, :, 0, 0], layer.bias)
    features = backbone(backbone.embed(images_of()))
    got = objective.head([features.tokens.transpose(1, 2).reshape(2, 48, 3, 5)])
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), want)
    level = torch.zeros(1, 48, 3, 5)
    shapes = [tuple(scale(level).shape[-2:]) for scale in built(HEADS[1])[1].head.pyramid]
    assert shapes == [(12, 20), (6, 10), (3, 5), (2, 3)]


def test_each_of_the_four_levels_reaches_the_scores() -> None:
    _, objective = built(HEADS[1])
    levels = [torch.randn(1, 48, 3, 5, requires_grad=True) for _ in range(4)]
    objective.head.eval()(levels).square().sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in levels)


@every_head
def test_the_arithmetic_each_head_states_is_what_runs(config) -> None:
    backbone, objective = built(config)
    images, maps = images_of(1), torch.zeros(1, 24, 40, dtype=torch.uint8)
    sizes = sizes_of(VIT, GRID, 3, GRID.num_patches)
    with op.forced("sdpa"), FlopCounterMode(display=False, custom_mapping=COUNTED) as forward:
        loss_of(backbone, objective, images, maps)
    assert forward.get_total_flops() == pytest.approx(config.forward_flops(sizes) + sizes.embed_flops, rel=0.01)


def test_a_pixel_of_no_class_gives_no_gradient_and_every_labelled_one_weighs_the_same() -> None:
    scores = torch.randn(2, 3, 4, 6, requires_grad=True)
    classes = torch.randint(0, 3, (2, 4, 6), dtype=torch.uint8)
    classes[0, :2] = 255
    classes[1] = 255
    losses = pixel_cross_entropy(scores, classes)
    assert losses[1] == 0
    losses.sum().backward()
    grad = scores.grad
    assert not grad[1].any() and not grad[0, :, :2].any() and bool((grad[0, :, 2:] != 0).all())
    by_hand = -scores[0].log_softmax(0).gather(0, classes[0].long().clamp(max=2)[None])[0, 2:].sum() / 24
    torch.testing.assert_close(losses[0], by_hand)


@every_head
def test_a_frozen_encoder_gets_no_gradient_drops_nothing_and_its_head_learns(config) -> None:
    config = dataclasses.replace(config, frozen=True)
    backbone, objective = built(config, dataclasses.replace(VIT, drop_path=0.9))
    backbone.train()
    maps = torch.randint(0, 5, (2, 24, 40), dtype=torch.uint8)
    first, second = (loss_of(backbone, objective, images_of(), maps) for _ in range(2))
    assert torch.equal(first, second)
    first.sum().backward()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for parameter in objective.parameters())


CAMVID = ROOT / "configs" / "segment_camvid.py"
REFUSED = [
    (["data.maps=none"], r"learns the class of every pixel from label maps, and data\.maps=none; set"),
    (["data.maps=.png"], r"data\.maps=\.png; it must be the extension of a member"),
    (["data.map_void=3"], r"numbers 0 to 10; they must be at most 255, and data\.map_void=3 none"),
    (["data.map_first=250", "data.map_void=none"], r"classes of the numbers 250 to 260; they must be at most 255"),
    (["data.map_void=256"], r"data\.map_void=256; it must be a whole number from 0 to 255"),
    (["objective.pixel_classes=12"], r"data\.map_names has 11 names, 11 of them different, and obj"),
    (["objective.pixel_classes=1"], r"objective\.pixel_classes=1; it must be from 2 to 255"),
    (["data.rand_augment=rand-m9"], r"moves what label maps mark; set data\.rand_augment=none"),
    (["data.mixup=0.5"], r"mix labels with images"),
    (["data.train=embedded"], r"data\.train=embedded: these photographs have no label maps"),
    (["objective.layers=1,2,6"], r"objective\.layers=1,2,6 has blocks above 5; set objective\.layers=none"),
    (["objective.layers=2,1,3"], r"objective\.layers=2,1,3; it must be three blocks, ascending"),
    (["objective.layers=1,2,3", "objective.head=linear"], r"no effect with objective\.head=linear"),
    (["objective.frozen=true"], r"layer_decay=0\.75 is for an encoder that is trained, .*set optim\.layer_decay=none"),
    (["objective.frozen=true", "optim.layer_decay=none", "backbone.drop_path=0.1"], r"set backbone\.drop_path=0$"),
    (["evaluation.every_steps=5", "data.val=none"], r"needs labelled images: give data\.val"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "why"), REFUSED, ids=[",".join(overrides) for overrides, _ in REFUSED])
def test_settings_of_a_segmentation_that_cannot_be_meant_are_refused(overrides: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check(load_config(CAMVID, overrides))


def test_label_maps_without_a_segmentation_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.maps=png has no effect: PixelMAEConfig uses no label maps"):
        check(load_config(ROOT / "configs" / "mae_cifar.py", ["data.maps=png"]))


def test_the_recipe_for_ade20k_is_the_one_that_was_published_for_mae() -> None:
    config: Config = load_config(ROOT / "configs" / "segment_vitb16.py")
    check(config)
    assert isinstance(config.objective, SegmentConfig) and config.data.image_size == (512, 512)
    assert config.optim.base_lr * config.data.batch_size / 256 == pytest.approx(1e-4)
    assert (config.steps, config.optim.warmup * 160_000) == (160_000, pytest.approx(1500))
    assert config.objective.layers == (3, 5, 7) and config.optim.layer_decay == 0.65
