"""pretrain/objectives/simmim.py: the loss is that of SimMIM written plainly, and its run goes on after a kill."""

import os
import signal
import time

import pytest
import torch

from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain.backbones.vit import ViTConfig
from pretrain.engine.optim import split_decay
from pretrain.model import PretrainModel
from pretrain.objectives.simmim import SimMIMConfig
from tests import chaos
from tests.objectives import plain
from tests.objectives.plain import MEAN, STD
from tests.zygote import shared

GRID = Grid(4, 6)
VIT = ViTConfig("tiny", patch_size=8, width=48, depth=3, heads=4)


def model(vit=VIT, seed=0, **settings):
    torch.manual_seed(seed)
    backbone = vit.build(GRID, 3, MEAN, STD)
    objective = SimMIMConfig(**settings).build(backbone)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *objective.parameters()):
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone, objective


def inputs(batch=3, num_visible=10):
    rng = generator(1)
    images = torch.randint(0, 256, (batch, 3, 32, 48), dtype=torch.uint8, generator=rng)
    return images, Mask.cut(torch.rand(batch, 24, generator=rng), num_visible)


def plain_loss(backbone, objective, images, hidden):
    """SimMIM as its paper tells it: embed the whole image by a convolution, put the mask token where a patch is hidden,
    encode everything, predict every patch, and average the absolute error over hidden values."""
    pixels = plain.normalized(images)
    tokens = plain.embed(backbone, pixels)
    tokens = torch.where(hidden[..., None], objective.mask_token.expand_as(tokens), tokens)
    x = plain.with_prefix(backbone, tokens + plain.positions(backbone))
    x = plain.transform(backbone.blocks, backbone.norm, x)[:, backbone.num_prefix :]
    target = plain.patches_of(pixels, 8)
    if objective.config.norm_pixels:
        target = plain.by_patch(target)
    error = (objective.head(x) - target).abs()
    losses = []
    for image in range(len(images)):
        found = [error[image, patch, value] for patch in range(24) if hidden[image, patch] for value in range(192)]
        losses.append(torch.stack(found).sum() / len(found))
    return torch.stack(losses)


VARIANTS = {
    "as published": {"vit": ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4, layer_scale=0.1)},
    "normalised pixels": {"norm_pixels": True},
    "registers": {"vit": ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4, registers=3)},
    "no class token": {"vit": ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4, class_token=False)},
    "learned positions": {"vit": ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4, positions="learned")},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_loss_and_every_gradient_equal_the_plain_formulation(variant):
    backbone, objective = model(**variant)
    images, mask = inputs()
    parameters = dict(backbone.named_parameters()) | dict(objective.named_parameters())
    want = plain_loss(backbone, objective, images, mask.hidden)
    wanted = torch.autograd.grad(want.mean(), parameters.values())
    got = objective(backbone, images, mask, objective.target(images))[0]["pixel"]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    for name, mine, theirs in zip(parameters, torch.autograd.grad(got.mean(), parameters.values()), wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_features_are_the_encoders_own_at_visible_patches():
    backbone, objective = model()
    images, mask = inputs()
    features = objective(backbone, images, mask, objective.target(images))[1]
    tokens = torch.where(mask.hidden[..., None], objective.mask_token, backbone.embed(images))
    whole = backbone(tokens)
    torch.testing.assert_close(features.prefix, whole.prefix)
    for image in range(3):
        torch.testing.assert_close(features.tokens[image], whole.tokens[image][~mask.hidden[image]])


@pytest.mark.parametrize("norm_pixels", [False, True])
def test_a_perfect_prediction_costs_exactly_nothing_and_reconstructs_the_image(norm_pixels):
    backbone, objective = model(norm_pixels=norm_pixels)
    images, mask = inputs()
    truth = objective.pixels(images, mask.ids_mask)
    objective.head.register_forward_hook(lambda *_: truth)
    losses, _ = objective(backbone, images, mask, objective.target(images))
    assert losses["pixel"].tolist() == [0.0, 0.0, 0.0]
    got = objective.reconstruct(backbone, images, mask)
    torch.testing.assert_close(got, images / 255, rtol=0, atol=2e-3 if norm_pixels else 1e-5)


def test_head_and_loss_see_hidden_rows_alone():
    backbone, objective = model()
    images, mask = inputs()
    seen = []
    objective.head.register_forward_hook(lambda module, args, out: seen.append((args[0].shape, out.shape)))
    objective(backbone, images, mask, objective.target(images))
    assert seen == [((3, 14, 48), (3, 14, 192))]


def test_the_token_starts_small_is_not_decayed_and_belongs_to_the_objective():
    torch.manual_seed(0)
    backbone = ViTConfig("base", depth=1).build(Grid(14, 14), 3, MEAN, STD)
    objective = SimMIMConfig().build(backbone)
    assert set(dict(objective.named_parameters())) == {"mask_token", "head.weight", "head.bias"}
    assert objective.mask_token.std().item() == pytest.approx(0.02, rel=0.1)
    decayed, free = split_decay(PretrainModel(backbone, objective))
    assert "objective.head.weight" in decayed and "objective.mask_token" in free


def test_it_learns_what_a_patch_says_of_its_neighbours():
    backbone, objective = model()
    ramp = torch.linspace(0, 255, 48).expand(8, 3, 32, -1) * torch.rand(8, 1, 1, 1, generator=generator(0)).clamp(0.3)
    images = ramp.to(torch.uint8)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *objective.parameters()], lr=3e-3)
    history = []
    for step in range(60):
        mask = Mask.cut(torch.rand(8, 24, generator=generator(0, "mask", step)), 10)
        loss = objective(backbone, images, mask, objective.target(images))[0]["pixel"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) / 5 < 0.25 * history[0]


def rank(place, overrides):
    """What a forked rank does: `lacuna train` of the small config."""
    from launch.cli import main

    raise SystemExit(main(["train", "configs/simmim_cifar.py", *overrides]))


def overrides(run_dir, pattern):
    drop = ("data.image_size", "objective.", "data.val")
    settings = chaos.overrides(run_dir, pattern, steps=12, stage=3, workers=0)
    kept = [setting for setting in settings if not setting.startswith(drop)]
    return [*kept, "epochs=none", "checkpoint.every_steps=4"]


def test_a_run_on_two_processes_that_is_killed_goes_on_to_the_same_losses(tmp_path):
    pattern = chaos.make_shards(tmp_path / "shards")
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    case = "tests/objectives/test_simmim.py:rank"
    for outcome in shared().run(case, 2, {"overrides": overrides(calm, pattern)}):
        assert outcome.code == 0, outcome.output[-3000:]
    attempt = shared().start(case, 2, {"overrides": overrides(killed, pattern)})
    while chaos.last_step(killed) < 4:
        time.sleep(0.005)
    for pid in attempt.pids:
        os.kill(pid, signal.SIGKILL)
    assert [outcome.code for outcome in attempt.wait()] == [-signal.SIGKILL] * 2
    for outcome in shared().run(case, 2, {"overrides": overrides(killed, pattern)}):
        assert outcome.code == 0, outcome.output[-3000:]
    assert chaos.compare(calm, killed)["metrics_lines"] == 12
