"""iLLaMA learning classes: a class token that sees nothing stays at chance, one behind the patches learns, and the loss
jumps where the mask sets in and comes back."""

import math

import pytest
import torch
from torch.nn import functional as F

from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.soft_mask import SoftMask
from pretrain.data.embedded import PHOTOGRAPHS, embedded_shards
from pretrain.data.evaluation_batches import evaluation_batches
from pretrain.data.settings import DataConfig
from pretrain.data.shards import open_shards
from pretrain.engine.schedule import rate
from pretrain.engine.settings import OptimConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.types import Labels
from tests.objectives.plain import MEAN, STD

GRID, BATCH = Grid(4, 4), 32
BLIND = {"mode": "exact", "class_token": "first", "soft_mask": None}


def trained(images, labels, steps, seed=0, width=64, depth=4, watched=(), **settings):
    """Loss of every step, what the trained network scores for images, and the loss of all of them as each of the
    watched steps finds it, with alpha as it is there."""
    torch.manual_seed(seed)
    num_classes = int(labels.max()) + 1
    config = IllamaConfig("tiny", patch_size=8, width=width, depth=depth, heads=2, **settings)
    encoder = config.build(GRID, 3, MEAN, STD)
    objective = SupervisedConfig(num_classes, label_smoothing=0.0).build(encoder)
    optim = OptimConfig(base_lr=3e-3 * 256 / BATCH, warmup=0.1, final_lr_ratio=0.05)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], betas=(0.9, 0.999))
    losses, whole, mask = [], [], Mask.of_nothing(BATCH, GRID)
    for step in range(steps):
        encoder.at_step(step, steps, 1.0)
        optimizer.param_groups[0]["lr"] = rate(step, steps, optim, BATCH)
        if step in watched:
            whole.append(float(F.cross_entropy(objective.classify(encoder, images), labels)))
        ids = torch.randint(len(images), (BATCH,), generator=generator(seed, "batch", step))
        target = objective.target(images[ids], Labels.single(labels[ids]))
        loss = objective(encoder, images[ids], mask, target)[0]["class"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, objective.eval().classify(encoder.eval(), images), whole


def accuracy(scores, labels):
    return float((scores.argmax(1) == labels).float().mean())


def test_a_class_token_that_sees_nothing_scores_all_images_alike_however_long_it_is_trained():
    labels = torch.arange(96) % 3
    images = torch.randint(0, 80, (96, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    images[torch.arange(96), labels] += 150  # a colour for each class: nothing is easier to see
    scores = trained(images, labels, 25, width=32, depth=2, **BLIND)[1]
    torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=0, atol=1e-5)
    assert accuracy(scores, labels) == pytest.approx(1 / 3, abs=0.01)
    for seeing in ({"mode": "exact", "soft_mask": None}, {**BLIND, "class_token": "first_seen"}, {}):
        assert accuracy(trained(images, labels, 25, width=32, depth=2, **seeing)[1], labels) > 0.9


@pytest.mark.slow
def test_on_photographs_the_blind_token_stays_at_chance_and_the_last_one_learns_through_a_jump_of_its_loss(tmp_path):
    shards = open_shards(embedded_shards(tmp_path, (32, 32))[0])
    settings = DataConfig("embedded", image_size=(32, 32), workers=0)
    images, labels = map(torch.cat, zip(*evaluation_batches(shards, settings, 64, max_images=896), strict=True))
    chance = float(labels.bincount().max()) / len(labels)
    blind, scores, _ = trained(images, labels, 200, **BLIND)
    end = sum(blind[-50:]) / 50
    assert accuracy(scores, labels) <= chance + 0.02 and end == pytest.approx(math.log(len(PHOTOGRAPHS)), abs=0.05)
    for seed in (0, 1):
        watched = (299, 300, 420)  # the last step before the mask, the first under it, and a fifth of the run later
        _, scores, (before, after, later) = trained(
            images, labels, 600, seed, watched=watched, soft_mask=SoftMask("constant", 0.5)
        )
        assert accuracy(scores, labels) > 0.5 > 4 * chance
        print(f"seed {seed}: {before:.3f}, {after:.3f}, {later:.3f}; {accuracy(scores, labels):.3f} right")
        assert after > 1.03 * before and later < before
