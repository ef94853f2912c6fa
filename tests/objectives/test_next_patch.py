"""pretrain/objectives/next_patch.py: what a prediction may know, and which patches count."""

import dataclasses

import pytest
import torch

from masking.mask import Grid, Mask
from pretrain.backbones.illama import IllamaConfig
from pretrain.checks import check
from pretrain.config import load_config
from pretrain.errors import ConfigError
from pretrain.objectives.next_patch import NextPatchConfig, prefix_lengths
from pretrain.patches import patchify
from pretrain.types import Target
from tests.syntax import ROOT

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
GRID = Grid(3, 4)


def build(**settings):
    torch.manual_seed(0)
    encoder = IllamaConfig("tiny", patch_size=4, width=48, depth=2, heads=3, mode="prefix", soft_mask=None)
    backbone = encoder.build(GRID, 3, MEAN, STD)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone, NextPatchConfig(head_depth=1, **settings).build(backbone)


def inputs(visible=10):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 12, 16), dtype=torch.uint8, generator=rng)
    return images, Mask.cut(torch.rand(2, 12, generator=rng), visible)


def with_patch(images, patch):
    other = images.clone()
    top, left = patch // 4 * 4, patch % 4 * 4
    other[:, :, top : top + 4, left : left + 4] += 100
    return other


def predictions(backbone, objective, images, mask, lengths):
    """Of patches 1 to N - 1, (B, N - 1, P)."""
    return objective._head(objective._encode(backbone, images, mask, lengths).tokens[:, :-1])


def test_a_prediction_knows_the_patches_before_it_and_of_the_prefix_and_no_other():
    backbone, objective = build(mask_inputs=False)
    images, mask = inputs()
    lengths = torch.tensor([3, 7])
    base = predictions(backbone, objective, images, mask, lengths)
    for patch in range(12):
        changed = predictions(backbone, objective, with_patch(images, patch), mask, lengths)
        found = ((changed - base).abs().amax(-1) > 0).tolist()
        for image, length in enumerate(lengths.tolist()):
            assert found[image] == [patch < t or (patch < length and t <= length - 1) for t in range(1, 12)]
            assert not any(found[image][t - 1] for t in range(length, 12) if t <= patch), "what is counted is not known"


def test_the_loss_is_the_mean_over_the_patches_behind_the_prefix():
    backbone, objective = build(norm_pixels=False)
    images, mask = inputs()
    noise = torch.rand(2, 12, generator=torch.Generator().manual_seed(1))
    lengths = prefix_lengths(mask, noise)
    predicted = predictions(backbone, objective, images, mask, lengths)
    truth = (patchify(images, 4) / 255 - 0.5) / 0.25
    want = [(predicted[i, n - 1 :] - truth[i, n:]).square().mean() for i, n in enumerate(lengths.tolist())]
    losses, _ = objective(backbone, images, mask, Target(), noise)
    torch.testing.assert_close(losses["pixel"], torch.stack(want), rtol=1e-5, atol=1e-6)


def test_prefixes_are_of_every_length_that_leaves_something_and_equally_often():
    _, mask = inputs()
    wide = Mask.cut(torch.rand(60_000, 12), 10)
    lengths = prefix_lengths(wide, torch.Generator().manual_seed(0))
    counts = lengths.bincount(minlength=12)
    assert counts[0] == 0 and len(counts) == 12
    assert ((counts[1:] / 60_000 - 1 / 11).abs() < 0.006).all()
    assert prefix_lengths(mask, torch.full((2, 12), 1.0)).tolist() == [11, 11]  # noise of 1, rounded up
    assert prefix_lengths(mask, None).tolist() == [6, 6]


@pytest.mark.parametrize("masked", [True, False])
def test_hidden_patches_are_no_part_of_the_input_where_inputs_are_masked(masked):
    backbone, objective = build(mask_inputs=masked)
    images, mask = inputs()
    lengths = torch.tensor([11, 11])
    patch = int(mask.ids_mask[0, 0])
    other = with_patch(images, patch)
    base, changed = (predictions(backbone, objective, each, mask, lengths) for each in (images, other))
    assert torch.equal(base[0], changed[0]) == masked


def test_an_encoder_without_prefixes_is_refused():
    config = load_config(ROOT / "configs" / "illama_cifar_next.py")
    check(config)
    exact = dataclasses.replace(config.backbone, mode="exact")
    with pytest.raises(ConfigError, match=r"NextPatchConfig needs an IllamaConfig with backbone.mode=prefix"):
        check(dataclasses.replace(config, backbone=exact))
