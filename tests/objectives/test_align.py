"""pretrain/objectives/align.py: what is compared with what, and that the student learns more than a mean."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from masking.draw import draw, named_noise
from masking.mask import Grid, Mask, gather_rows
from masking.ratio import FixedRatio
from masking.rng import generator
from masking.strategies.guided import Guided
from pretrain.backbones.base import Backbone
from pretrain.errors import ConfigError
from pretrain.objectives.alignment import distance, whiten
from pretrain.objectives.teachers import TeacherConfig, frozen_teacher
from pretrain.types import Features, Target
from tests.objectives.align_cases import GRID, aligned, folder_of, loss_of, masks, photographs, small_teacher, student


def test_hidden_pixels_reach_the_loss_through_the_teacher_alone(tmp_path):
    assert FixedRatio(0.7).num_visible(Grid(14, 14), None) == 58
    backbone = student()
    objective = aligned(small_teacher(tmp_path), backbone)
    assert not [name for name, _ in objective.named_parameters() if "token" in name]
    images, mask = photographs(2), masks(2, 19)
    hidden = F.interpolate(mask.hidden.view(2, 1, 8, 8).float(), scale_factor=8).bool()
    changed = torch.where(hidden, 255 - images, images)
    found = [objective(backbone, given, mask, objective.target(given)) for given in (images, changed)]
    assert torch.equal(found[0][1].sequence, found[1][1].sequence)
    assert found[0][1].tokens.shape == (2, 19, 48) and found[0][1].prefix.shape == (2, 1, 48)
    assert (found[0][0]["align"] - found[1][0]["align"]).abs().min() > 1e-4


class Echo(Backbone):
    """A student that answers with what it was told to say, at the places it is asked for."""

    def __init__(self, layers):
        super().__init__()
        self.said = layers  # (B, 1 + N, D) each
        self.width, self.num_prefix, self.in_chans, self.patch_size = layers[0].shape[-1], 1, 3, 8
        self.grid, self.cls_token, self.blocks = GRID, 0, [None] * len(layers)

    def embed(self, images, ids=None):
        return ids

    def forward(self, tokens, ids=None, *, layers=()):
        places = torch.cat([torch.zeros_like(ids[:, :1]), ids + 1], dim=1)
        said = [gather_rows(layer, places) for layer in self.said]
        return Features(said[-1], 1, tuple(said[index] for index in layers))


def test_a_student_that_repeats_the_teacher_has_no_loss_and_one_that_is_a_patch_aside_has(tmp_path):
    images, mask = photographs(3), masks(3, 19)
    objective = aligned(small_teacher(tmp_path), student(), levels="all")
    told = objective.target(images)
    echo = Echo([whiten(layer) for layer in told.layers])
    with torch.no_grad():
        objective.alignment.mixing.weight.copy_(torch.eye(3))
    objective.alignment.adaptors = nn.ModuleList(nn.Identity() for _ in range(3))
    layers, _ = objective._student(echo, images, mask)
    floor = objective.alignment(layers, objective._wanted(told, mask))
    assert floor.shape == (3, 3) and floor.max() < 1e-9
    aside = Target(layers=tuple(torch.cat([x[:, :1], x[:, 1:].roll(1, 1)], 1) for x in told.layers))
    shifted = objective.alignment(layers, objective._wanted(aside, mask))
    assert shifted.min() > 1e-3  # a million times the floor
    swapped = Target(layers=told.layers[1:] + told.layers[:1])
    assert objective.alignment(layers, objective._wanted(swapped, mask)).min() > 1e-3


def test_the_loss_is_the_plain_formula_over_class_token_and_visible_patches(tmp_path):
    backbone = student(depth=4)
    objective = aligned(small_teacher(tmp_path, depth=4), backbone, levels="top", num_levels=2)
    with torch.no_grad():
        objective.alignment.mixing.weight.add_(torch.randn(4, 4) * 0.1)
        backbone.norm.weight.normal_()
    images, mask = photographs(2), masks(2, 19)
    every = backbone(backbone.embed(images, mask.ids_keep), mask.ids_keep, layers=range(4))
    states = [*every.layers[:3], every.sequence]  # the last behind the norm that downstream use reads it through
    places = torch.cat([torch.zeros(2, 1, dtype=torch.int64), mask.ids_keep + 1], 1)
    encoder = frozen_teacher(objective.config.teacher, GRID).encoder
    with torch.no_grad():
        taught = encoder.run(images, [0, 1, 2, 3])
    want = 0
    for adaptor, level in zip(objective.alignment.adaptors, (2, 3)):
        mixed = sum(weight * state for weight, state in zip(objective.alignment.mixing.weight[level], states))
        want = want + 0.5 * distance(adaptor(mixed), whiten(gather_rows(taught[level], places)))
    got, _ = objective(backbone, images, mask, objective.target(images))
    torch.testing.assert_close(got["align"], want)


def test_with_nothing_hidden_the_order_of_what_is_seen_does_not_matter(tmp_path):
    backbone = student()
    objective = aligned(small_teacher(tmp_path), backbone)
    images, whole = photographs(2), Mask.of_nothing(2, GRID)
    order = torch.stack([torch.randperm(64) for _ in range(2)])
    mixed = Mask(whole.hidden, order, whole.ids_mask, order.argsort(1), order)
    assert whole.num_visible == 64
    torch.testing.assert_close(
        loss_of(objective, backbone, images, whole), loss_of(objective, backbone, images, mixed), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("teacher", "mine"), [(4, 2), (2, 4)])
def test_students_and_teachers_of_unequal_depth_meet_at_all_levels(tmp_path, teacher, mine):
    backbone = student(depth=mine)
    objective = aligned(small_teacher(tmp_path, depth=teacher, width=32), backbone, levels="all")
    assert objective.alignment.mixing.weight.shape == (teacher, mine)
    loss_of(objective, backbone, photographs(2), masks(2, 19)).backward()
    assert (objective.alignment.mixing.weight.grad != 0).all()
    with pytest.raises(ConfigError, match=f"the teacher has {teacher} blocks, the student {mine}; use objective"):
        aligned(objective.config.teacher, backbone, mixing=False)


@pytest.mark.parametrize("prefix", [{"class_token": False}, {"registers": 2}], ids=["no class token", "registers"])
def test_only_tokens_that_both_have_are_compared(tmp_path, prefix):
    backbone = student(**prefix)
    objective = aligned(small_teacher(tmp_path), backbone)
    images, mask = photographs(2), masks(2, 19)
    target = objective.target(images)
    tokens = 19 if "class_token" in prefix else 20
    layers, _ = objective._student(backbone, images, mask)
    wanted = objective._wanted(target, mask)
    assert {x.shape[1] for x in (*layers, *wanted)} == {tokens}
    torch.testing.assert_close(wanted[0][:, -19:], whiten(gather_rows(target.layers[0], mask.ids_keep + 1)))


def test_keeping_patches_by_attention_follows_plackett_and_luce():
    """Inclusion of 20 patches of weight 10 among 176 of weight 1, 58 drawn: 0.920 and 0.225."""
    grid, ratio = Grid(14, 14), FixedRatio(0.7)
    guidance = torch.ones(20_000, 196)
    guidance[:, :20] = 10
    rows = torch.arange(20_000)
    noise = named_noise(rows, 0, "mask", 0)
    seen = torch.zeros(20_000, 196)
    seen.scatter_(1, Guided(ratio).order(grid, 58, noise, guidance)[:, :58], 1.0)
    share = seen.mean(0)
    assert float(share[:20].mean()) == pytest.approx(0.920, abs=0.01)
    assert float(share[20:].mean()) == pytest.approx(0.225, abs=0.01)
    assert float(share.sum()) == pytest.approx(58, abs=1e-3)
    few = guidance[:2]
    once, again = (draw(Guided(ratio), grid, rows[:2], 0, step, few).ids_keep for step in (0, 1))
    assert not torch.equal(once, again)
    assert torch.equal(once, draw(Guided(ratio), grid, rows[:2], 0, 0, few).ids_keep)
    flat = torch.zeros(20_000, 196)
    flat.scatter_(1, Guided(ratio).order(grid, 58, noise, torch.full((20_000, 196), 0.3))[:, :58], 1.0)
    assert (flat.mean(0) - 58 / 196).abs().max() < 0.02


def test_what_the_teacher_attends_to_is_more_often_visible(tmp_path):
    objective = aligned(small_teacher(tmp_path), student())
    encoder = frozen_teacher(objective.config.teacher, GRID).encoder
    with torch.no_grad():
        encoder.blocks[-1].attn.qkv.weight.mul_(6)  # random weights attend to everything alike
    guidance = objective.target(photographs(1)).guidance
    many = guidance.expand(600, -1)
    mask = draw(Guided(FixedRatio(0.7)), GRID, torch.arange(600), 0, 0, many)
    assert many[~mask.hidden].mean() > 1.05 * many[mask.hidden].mean()
    inclusion = (~mask.hidden).float().mean(0)
    assert torch.corrcoef(torch.stack([inclusion, guidance[0]]))[0, 1] > 0.7


def test_a_frozen_teacher_is_in_no_module_and_never_moves(tmp_path):
    backbone = student()
    objective = aligned(small_teacher(tmp_path), backbone)
    encoder = frozen_teacher(objective.config.teacher, GRID).encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert {name.split(".")[0] for name in objective.state_dict()} == {"alignment"}
    assert aligned(objective.config.teacher, student(depth=2))._frozen is objective._frozen
    images, mask = photographs(4), masks(4, 19)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *objective.parameters()], lr=1e-3)
    start = objective.alignment.mixing.weight.detach().clone()
    for _ in range(100):
        objective.train()
        loss_of(objective, backbone, images, mask).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not encoder.training and all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    moved = (objective.alignment.mixing.weight.detach() - start).abs()
    assert moved[~torch.eye(3, dtype=torch.bool)].min() > 1e-3


def test_the_first_loss_on_photographs_is_that_of_knowing_nothing(tmp_path):
    """Each level's is that of a prediction as large as its own and independent of the target: 1.44 behind the norm of
    the last, whose tokens have variance one, and more where MAE's start leaves the raw stream larger."""
    teacher = TeacherConfig(folder_of(tmp_path, "vit_tiny_patch16_224")[0])
    backbone = student(depth=12, width=192, grid=Grid(14, 14), patch=16)
    objective = aligned(teacher, backbone, mixing=False)
    images, mask = photographs(4, 224), masks(4, 58, Grid(14, 14))
    target = objective.target(images)
    with torch.no_grad():
        layers, _ = objective._student(backbone, images, mask)
        found = objective.alignment(layers, objective._wanted(target, mask)).mean(1)
        pairs = zip(objective.alignment.adaptors, layers[7:])
        sizes = torch.stack([adaptor(layer).square().mean().sqrt() for adaptor, layer in pairs])
    normal = torch.randn(2, 200_000, generator=generator(4))
    want = torch.stack([distance(size * normal[:1, None], normal[1:, None]).mean() for size in sizes])
    torch.testing.assert_close(found, want, rtol=0.1, atol=0)
    assert 0.8 < float(found[-1]) < 2


def test_an_inspection_is_the_matrix_and_what_it_means(tmp_path):
    backbone = student(depth=4)
    objective = aligned(small_teacher(tmp_path, depth=4), backbone, num_levels=2)
    images, mask = photographs(2), masks(2, 19)
    target = objective.target(images)
    found = objective.inspect(backbone, images, mask, target)
    torch.testing.assert_close(torch.tensor(found["matrix"]), objective.alignment.matrix())
    shares = torch.tensor(found["contributions"])
    torch.testing.assert_close(shares.abs().sum(1), torch.ones(4), rtol=1e-4, atol=0)
    want = torch.tensor(found["matrix"])[3] * torch.tensor(found["layer_sizes"])
    torch.testing.assert_close(shares[3], want / want.abs().sum(), rtol=1e-3, atol=1e-5)
    loss = objective(backbone, images, mask, target)[0]["align"].detach().mean()
    assert found["levels"] == [2, 3]
    assert sum(found["distances"]) / 2 == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.slow
def test_a_student_learns_more_than_the_mean_of_its_teacher(tmp_path):
    """256 photographs, 300 steps: below what predicting each channel's mean of the data set would give."""
    backbone = student(depth=2)
    objective = aligned(small_teacher(tmp_path, depth=2), backbone)
    images = photographs(256)
    target = objective.target(images)
    states = [whiten(layer) for layer in target.layers]
    mean = torch.stack([distance(x.mean((0, 1)).expand_as(x), x).mean() for x in states]).mean()
    optimizer = torch.optim.AdamW([*backbone.parameters(), *objective.parameters()], lr=3e-3)
    for step in range(300):
        rows = torch.randint(0, 256, (32,), generator=generator(step))
        mask = draw(Guided(FixedRatio(0.7)), GRID, rows, 0, step, target.guidance[rows])
        given = Target(layers=tuple(layer[rows] for layer in target.layers))
        loss = objective(backbone, images[rows], mask, given)[0]["align"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mask = draw(Guided(FixedRatio(0.7)), GRID, torch.arange(256), 0, 999, target.guidance)
    with torch.no_grad():
        final = objective(backbone, images, mask, target)[0]["align"].mean()
    assert final < 0.8 * mean
