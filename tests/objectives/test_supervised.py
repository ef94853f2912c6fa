"""Supervised training: its loss is the cross-entropy with the targets that smoothing and mixing mean, and it learns."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from masking.mask import Grid, Mask
from masking.strategies.uniform import Uniform
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.checks import check
from pretrain.config import load_config
from pretrain.engine.schedule import rate
from pretrain.errors import ConfigError
from pretrain.objectives.supervised import SupervisedConfig, soft_cross_entropy
from pretrain.types import Labels
from tests.objectives.plain import MEAN, STD
from tests.syntax import ROOT

GRID = Grid(4, 4)
VIT = ViTConfig("tiny", patch_size=4, width=32, depth=1, heads=2)
ILLAMA = IllamaConfig("tiny", patch_size=4, width=32, depth=1, heads=2)
WHOLE = dataclasses.replace(
    load_config(ROOT / "configs" / "tiny_cpu.py"), objective=SupervisedConfig(num_classes=5), mask=None
)


def with_data(**settings):
    return dataclasses.replace(WHOLE, data=dataclasses.replace(WHOLE.data, **settings))


def test_the_loss_is_torchs_cross_entropy_with_smoothed_and_mixed_targets():
    torch.manual_seed(0)
    logits, first, second = torch.randn(6, 5), torch.randint(0, 5, (6,)), torch.randint(0, 5, (6,))
    share = torch.rand(6)
    one = [F.cross_entropy(logits, ids, label_smoothing=0.1, reduction="none") for ids in (first, second)]
    got = soft_cross_entropy(logits, Labels(first, second, share), 0.1)
    torch.testing.assert_close(got, share * one[0] + (1 - share) * one[1])


def test_a_row_without_a_label_has_a_finite_loss_that_weight_0_leaves_out():
    assert soft_cross_entropy(torch.randn(2, 5), Labels.single(torch.tensor([-1, 3])), 0.1).isfinite().all()


@pytest.mark.parametrize(("backbone", "pool"), [(VIT, "cls"), (VIT, "mean"), (ILLAMA, "cls")])
def test_classes_that_differ_in_colour_are_learned_and_classify_says_which(backbone, pool):
    torch.manual_seed(0)
    encoder = backbone.build(GRID, 3, MEAN, STD)
    objective = SupervisedConfig(num_classes=3, pool=pool).build(encoder)
    labels = torch.arange(12) % 3
    images = torch.randint(0, 80, (12, 3, 16, 16), dtype=torch.uint8)
    images[torch.arange(12), labels] += 150
    mask, target = Mask.of_nothing(12, GRID), objective.target(images, Labels.single(labels))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], 3e-3)
    for _ in range(40):
        loss = objective(encoder, images, mask, target)[0]["class"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = objective.classify(encoder, images)
    assert torch.equal(scores.argmax(1), labels) and scores.dtype == torch.float32 and not scores.requires_grad


def test_a_head_on_the_class_token_needs_one_and_no_patch_comes_out_of_the_last_block():
    without = dataclasses.replace(WHOLE, backbone=dataclasses.replace(VIT, class_token=False))
    with pytest.raises(ConfigError, match=r"needs a class token, and ViTConfig has none; set objective.pool=mean"):
        check(without)
    check(dataclasses.replace(without, objective=SupervisedConfig(pool="mean")))
    images, mask = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), Mask.of_nothing(2, GRID)
    for backbone in (VIT, ILLAMA, dataclasses.replace(ILLAMA, class_token="first")):
        encoder = backbone.build(GRID, 3, MEAN, STD)
        for pool, tokens in (("cls", 0), ("mean", 16)):
            objective = SupervisedConfig(num_classes=3, pool=pool).build(encoder)
            target = objective.target(images, Labels.single(torch.tensor([0, 2])))
            assert objective(encoder, images, mask, target)[1].tokens.shape == (2, tokens, 32)


@pytest.mark.parametrize("place", ["last", "first", "first_seen"])
def test_scores_are_the_heads_of_the_class_token_of_a_whole_forward(place):
    torch.manual_seed(0)
    deep = dataclasses.replace(ILLAMA, depth=2, class_token=place, soft_mask=None)
    for mode in ("paper", "exact"):
        encoder = dataclasses.replace(deep, mode=mode).build(GRID, 3, MEAN, STD)
        objective = SupervisedConfig(num_classes=3).build(encoder)
        images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
        whole = encoder(encoder.embed(images)).prefix[:, 0]
        torch.testing.assert_close(objective.classify(encoder, images), objective.head(whole))


def test_what_cannot_be_meant_is_refused_in_one_sentence():
    check(WHOLE)
    with pytest.raises(ConfigError, match=r"SupervisedConfig hides no patches; set mask=none"):
        check(dataclasses.replace(WHOLE, mask=Uniform()))
    with pytest.raises(ConfigError, match=r"objective.num_classes=1; it must be 2 or more"):
        check(dataclasses.replace(WHOLE, objective=SupervisedConfig(num_classes=1)))
    check(with_data(mixup=0.8, cutmix=1.0, batch_size=8))
    with pytest.raises(ConfigError, match=r"gives each of 2 processes 3 images, .* make it a multiple of 4"):
        check(with_data(mixup=0.8, batch_size=6), world_size=2)
    tiny = load_config(ROOT / "configs" / "tiny_cpu.py", ["data.cutmix=1.0"])
    with pytest.raises(ConfigError, match=r"PixelMAEConfig uses no labels; set both to 0"):
        check(tiny)


def test_the_authors_recipe_ends_its_warm_up_at_4e_3_and_its_soft_mask_after_25_epochs():
    config = load_config(ROOT / "configs" / "illama_b16_supervised.py")
    an_epoch, steps = 312, 300 * 312  # of 4,096 of ImageNet-1k's images
    rates = [rate(step, steps, config.optim, config.data.batch_size) for step in (50 * an_epoch - 1, steps - 1)]
    assert rates == [pytest.approx(4e-3), pytest.approx(1e-6, rel=1e-3)]
    alpha = [config.backbone.soft_mask.alpha(step, steps, an_epoch) for step in range(26 * an_epoch)]
    assert sum(alpha[:an_epoch]) / an_epoch == pytest.approx(0.9800615463520972, rel=1e-12)  # in the authors' log
    assert alpha[25 * an_epoch - 2] > 0 and not any(alpha[25 * an_epoch - 1 :])
