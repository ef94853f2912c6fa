"""pretrain/objectives/queries.py: questions see what is visible, and nothing else sees them."""

import dataclasses

import pytest
import torch

from masking.mask import Grid, Mask
from pretrain.backbones.illama import IllamaConfig
from pretrain.checks import check
from pretrain.config import load_config
from pretrain.errors import ConfigError
from pretrain.objectives.queries import MaskQueriesConfig
from pretrain.types import Target
from tests.syntax import ROOT

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
GRID = Grid(4, 5)


def build(alpha=0.0, **settings):
    torch.manual_seed(0)
    backbone = IllamaConfig("tiny", patch_size=4, width=48, depth=3, heads=3).build(GRID, 3, MEAN, STD)
    backbone.alpha.fill_(alpha)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone, MaskQueriesConfig(**settings).build(backbone)


def inputs(seed=0, visible=6):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, 3, 16, 20), dtype=torch.uint8, generator=rng)
    return images, Mask.cut(torch.rand(3, 20, generator=rng), visible)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_visible_features_are_those_of_the_visible_patches_alone(alpha):
    backbone, objective = build(alpha)
    images, mask = inputs()
    features = objective(backbone, images, mask, Target())[1]
    alone = backbone(backbone.embed(images, mask.ids_keep), mask.ids_keep)
    torch.testing.assert_close(features.sequence, alone.sequence, rtol=0, atol=2e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_prediction_does_not_know_which_others_are_asked_for(alpha):
    backbone, objective = build(alpha)
    images, mask = inputs()
    whole, _ = objective._ask(backbone, images, mask, mask.ids_mask)
    order = torch.tensor([9, 2, 5])
    some, _ = objective._ask(backbone, images, mask, mask.ids_mask[:, order])
    torch.testing.assert_close(some, whole[:, order], rtol=0, atol=1e-5)


def test_every_prediction_depends_on_every_visible_patch_though_the_mask_is_causal():
    backbone, objective = build()
    images, mask = inputs(visible=4)
    base, _ = objective._ask(backbone, images, mask, mask.ids_mask)
    for place in range(4):
        other = images.clone()
        for image, patch in enumerate(mask.ids_keep[:, place].tolist()):
            top, left = patch // 5 * 4, patch % 5 * 4
            other[image, :, top : top + 4, left : left + 4] += 100
        changed, _ = objective._ask(backbone, other, mask, mask.ids_mask)
        assert ((changed - base).abs().amax(-1) > 1e-6).all()


def test_the_loss_of_a_share_is_the_mean_over_the_patches_the_noise_chooses():
    backbone, objective = build(predict_ratio=0.3)
    images, mask = inputs()
    noise = torch.rand(3, 20, generator=torch.Generator().manual_seed(5))
    losses, _ = objective(backbone, images, mask, Target(), noise)
    whole, _ = objective._ask(backbone, images, mask, mask.ids_mask)
    errors = (whole - objective.pixels(images, mask.ids_mask)).square().mean(-1)
    chosen = noise.gather(1, mask.ids_mask).argsort(1)[:, :4]  # 0.3 of 14
    torch.testing.assert_close(losses["pixel"], errors.gather(1, chosen).mean(1), rtol=1e-5, atol=0)


def test_an_encoder_that_cannot_be_asked_is_refused():
    config = load_config(ROOT / "configs" / "illama_cifar_queries.py")
    check(config)
    first = dataclasses.replace(config.backbone, class_token="first")
    for backbone in (load_config(ROOT / "configs" / "tiny_cpu.py").backbone, first):
        with pytest.raises(ConfigError, match=r"MaskQueriesConfig needs an IllamaConfig with backbone\.class_token"):
            check(dataclasses.replace(config, backbone=dataclasses.replace(backbone, patch_size=4)))
