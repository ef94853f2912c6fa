"""MTO-R on SimMIM and MAE: what it keeps from whom, what its losses move, and that it is nothing where it is off."""

import dataclasses

import pytest
import torch

from masking.mask import Mask
from masking.rng import generator
from pretrain.backbones.treatment import Treatment
from pretrain.config import load_config
from pretrain.model import build_model
from pretrain.objectives.mto_r import MtoR, MtoRConfig
from tests.objectives.mto_r import (
    BATCH,
    DEPTH,
    GATE,
    GRID,
    HIDDEN,
    LOSSES,
    MAE,
    OFF,
    SIMMIM,
    VISIBLE,
    VIT,
    both,
    build,
    gradients,
    inputs,
    parameters_of,
    run,
)
from tests.syntax import ROOT


def outputs(mto, vit, token):
    """Visible and hidden tokens after the encoder, as functions of the mask token."""
    backbone, objective = build(SIMMIM, mto, vit)
    objective._parameters["mask_token"] = token
    images, mask = inputs()
    treatment = objective.mto.treatment(mask, mask.ids_mask, backbone.num_prefix)
    visible, hidden = objective._encode(backbone, images, mask, treatment)
    return visible.sequence, hidden


def test_where_all_hidden_keys_are_excluded_visible_tokens_do_not_know_the_mask_token():
    one_block = dataclasses.replace(VIT, depth=1)
    for mto, vit, seen in (
        (GATE, one_block, False),
        (dataclasses.replace(GATE, exclude="all"), VIT, False),
        (dataclasses.replace(GATE, rho0=0.0), one_block, True),
        (dataclasses.replace(GATE, exclude="none"), one_block, True),
        (GATE, VIT, True),  # later blocks exclude fewer
    ):
        found = []
        for seed in (0, 1):
            token = torch.nn.Parameter(torch.randn(1, 1, 48, generator=generator(seed)))
            visible, hidden = outputs(mto, vit, token)
            found.append(visible.detach())
            slope = [torch.autograd.grad(part.square().sum(), token, retain_graph=True, allow_unused=True)[0]
                     for part in (visible, hidden)]  # fmt: skip
            assert bool(slope[0] is not None and slope[0].abs().max() > 0) == seen
            assert slope[1].abs().max() > 0
        assert torch.equal(*found) == (not seen)


@both
def test_a_treatment_of_nothing_hidden_is_the_plain_encoder_with_losses_of_zero(config):
    backbone, objective = build(config, MtoRConfig())
    images, mask = inputs(num_visible=GRID.num_patches)
    treatment = objective.mto.treatment(mask, mask.ids_mask, backbone.num_prefix)
    tokens = backbone.embed(images)
    plain = backbone(tokens, mask.ids_keep).sequence
    assert torch.equal(backbone(tokens, mask.ids_keep, treatment=treatment).sequence, plain)
    assert [value.tolist() for value in objective.mto.losses(treatment).values()] == [[0.0] * BATCH] * 3


@both
def test_a_single_visible_token_divides_nothing_by_zero(config):
    backbone, objective = build(config, MtoRConfig(), dataclasses.replace(VIT, class_token=False))
    losses, _ = run(backbone, objective, *inputs(num_visible=1))
    assert all(values.isfinite().all() for values in losses.values()) and losses["mto_r"].tolist() == [0.0] * BATCH
    grads = gradients(sum(losses.values()).sum(), parameters_of(backbone, objective))
    assert all(grad.isfinite().all() for grad in grads)


@both
def test_l_e_alone_moves_the_mask_token_away_and_leaves_what_is_seen_alone(config):
    mto = MtoRConfig(exclude="none", lambda_spa=0.0, lambda_e=1.0, lambda_r=0.0)
    vit = dataclasses.replace(VIT, depth=2)
    config = dataclasses.replace(config, decoder_depth=2) if config is MAE else config
    backbone, objective = build(config, mto, vit)
    token = objective.token()
    images, mask = inputs()
    losses, _ = run(backbone, objective, images, mask)
    assert set(losses) == {"pixel", "mto_e"}
    # With two blocks the loss is that of the first alone, which sees hidden tokens before they took anything in.
    assert gradients(losses["mto_e"].sum(), [token])[0].abs().max() > 0
    others = [backbone.patch_embed.proj.weight, backbone.cls_token]
    assert all(grad.abs().max() == 0 for grad in gradients(losses["mto_e"].sum(), others))

    def distance():
        return objective.inspect(backbone, images, mask, objective.target(images))["heterogeneity"]["distance"][0]

    began, optimizer = distance(), torch.optim.SGD([token], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        run(backbone, objective, images, mask)[0]["mto_e"].sum().backward()
        optimizer.step()
    assert distance() > began + 0.1


def test_early_and_late_blocks_count_as_their_weights_say():
    backbone, objective = build(SIMMIM, LOSSES)
    images, mask = inputs()
    losses, _ = run(backbone, objective, images, mask)
    blocks = backbone.blocks
    last = [blocks[-1].attn.qkv.weight, blocks[-1].norm1.weight]
    assert all(grad.abs().max() == 0 for grad in gradients(losses["mto_spa"].sum(), last))
    assert gradients(losses["mto_r"].sum(), last)[0].abs().max() > 0
    cut = blocks[0].register_forward_hook(lambda module, args, out: out.detach())
    losses, _ = run(backbone, objective, images, mask)
    cut.remove()
    first = [blocks[0].attn.qkv.weight]
    assert gradients(losses["mto_r"].sum(), first)[0].abs().max() == 0
    assert gradients(losses["mto_spa"].sum(), first)[0].abs().max() > 0

    def spa(plans):
        treatment = Treatment(plans, backbone.num_prefix + VISIBLE, 0.1)
        objective._encode(backbone, images, mask, treatment)
        return treatment.terms[0]

    plans = LOSSES.plans(DEPTH, HIDDEN)
    assert [plan.mass for plan in plans] == pytest.approx([2 / 3, 1 / 3, 0])
    assert [plan.row for plan in plans] == pytest.approx([0, 1 / 3, 2 / 3])
    assert sum(plan.entropy for plan in plans) == pytest.approx(1)
    torch.testing.assert_close(spa(plans) * 0.1, losses["mto_spa"])
    assert (spa(plans) - spa([plan._replace(mass=1 / 3) for plan in plans])).abs().min() > 1e-3


@pytest.mark.parametrize("exclude", ["unmoved", "random"])
def test_permuting_the_patches_permutes_the_output_and_changes_no_loss(exclude):
    backbone, objective = build(SIMMIM, MtoRConfig(exclude=exclude, rho0=0.8))
    images, mask = inputs()
    noise = torch.rand(BATCH, GRID.num_patches, generator=generator(4))
    seen, hidden = torch.randperm(VISIBLE, generator=generator(5)), torch.randperm(HIDDEN, generator=generator(6))
    turned = dataclasses.replace(mask, ids_keep=mask.ids_keep[:, seen], ids_mask=mask.ids_mask[:, hidden])
    found = []
    for each in (mask, turned):
        treatment = objective.mto.treatment(each, each.ids_mask, backbone.num_prefix, noise)
        visible, tokens = objective._encode(backbone, images, each, treatment)
        found.append((visible.tokens, tokens, treatment.terms))
    for one, other in zip(found[1], (found[0][0][:, seen], found[0][1][:, hidden], found[0][2])):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("exclude", ["unmoved", "random", "all"])
def test_an_images_losses_do_not_depend_on_the_others(config, exclude):
    backbone, objective = build(config, MtoRConfig(exclude=exclude, rho0=0.8))
    images, mask = inputs()
    noise = torch.rand(BATCH, GRID.num_patches, generator=generator(4))
    losses, _ = run(backbone, objective, images, mask, noise)
    one = Mask.from_order(mask.order[1:2], VISIBLE)
    alone, _ = run(backbone, objective, images[1:2], one, noise[1:2])
    assert list(losses) == ["pixel", "mto_spa", "mto_e", "mto_r"]
    for name, values in losses.items():
        torch.testing.assert_close(values[1:2], alone[name], rtol=1e-5, atol=1e-6)


@both
def test_with_every_part_off_a_hundred_steps_are_the_baselines_to_the_bit(config):
    nothing = MtoRConfig(rho0=0.0, lambda_spa=0.0, lambda_e=0.0, lambda_r=0.0)
    found = []
    for mto in (None, OFF, nothing):
        backbone, objective = build(config, mto, dataclasses.replace(VIT, width=24))
        parameters = parameters_of(backbone, objective)
        optimizer, history = torch.optim.AdamW(parameters, lr=1e-3, fused=True), []
        for step in range(100):
            losses, _ = run(backbone, objective, *inputs(seed=step, batch=2))
            optimizer.zero_grad()
            losses["pixel"].mean().backward()
            optimizer.step()
            assert list(losses) == ["pixel"]
            history.append(losses["pixel"].detach())
        found.append([torch.stack(history), *(p.detach() for p in parameters)])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@both
def test_each_part_may_be_off_alone(config):
    images, mask = inputs()
    for name in ("spa", "e", "r"):
        backbone, objective = build(config, MtoRConfig(**{f"lambda_{name}": 0.0}))
        losses, _ = run(backbone, objective, images, mask)
        assert set(losses) == {"pixel", "mto_spa", "mto_e", "mto_r"} - {f"mto_{name}"}
    assert list(run(*build(config, GATE), images, mask)[0]) == ["pixel"]
    gated, plain = (run(*build(config, mto), images, mask)[0]["pixel"] for mto in (MtoRConfig(), LOSSES))
    assert torch.equal(run(*build(config, GATE), images, mask)[0]["pixel"], gated)
    torch.testing.assert_close(plain, run(*build(config), images, mask)[0]["pixel"], rtol=1e-5, atol=1e-6)
    assert (gated - plain).abs().min() > 1e-5


def test_controls_exclude_others_in_the_same_numbers():
    backbone, objective = build(SIMMIM)
    images, mask = inputs()
    seen = {}
    for exclude in ("unmoved", "random", "all", "none"):
        config = MtoRConfig(exclude=exclude, rho0=0.8)
        mto = MtoR(config, DEPTH)
        rules, block = [], backbone.blocks[1].attn
        noise = torch.rand(BATCH, GRID.num_patches, generator=generator(4))
        treatment = mto.treatment(mask, mask.ids_mask, backbone.num_prefix, noise)
        hook = block.register_forward_pre_hook(lambda module, args: rules.append(args[3]))  # noqa: B023
        objective._encode(backbone, images, mask, treatment)
        hook.remove()
        tokens, qkv = torch.randn(BATCH, 25, 48), torch.randn(BATCH, 25, 3, 4, 12)
        seen[exclude] = (rules[0](tokens, qkv).key_classes, noise.gather(1, mask.ids_mask))
        assert config.chooses == (exclude in ("unmoved", "random"))
    counts = {name: None if classes is None else (classes == 2).sum(1).tolist() for name, (classes, _) in seen.items()}
    assert counts == {"unmoved": [6] * 3, "random": [6] * 3, "all": [15] * 3, "none": None}
    classes, noise = seen["random"]
    assert torch.equal(classes[:, 10:] == 2, noise.argsort().argsort() < 6)
    assert not torch.equal(classes, seen["unmoved"][0])


def test_a_frozen_token_follows_from_the_seed_and_is_the_only_thing_that_changes():
    config = load_config(ROOT / "configs" / "mto_r_simmim_cifar.py", ["mto.frozen_token=10"])
    model, other = build_model(config), build_model(dataclasses.replace(config, mto=None))
    token = model.objective.mask_token
    assert not token.requires_grad and token.std().item() == pytest.approx(10, rel=0.2)
    assert torch.equal(token, build_model(config).objective.mask_token)
    weights = dict(other.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters() if p is not token)
