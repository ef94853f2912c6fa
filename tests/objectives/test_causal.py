"""The published objectives with a causal encoder: what a prediction may depend on."""

import pytest
import torch

from masking.mask import Grid, Mask
from pretrain.backbones.illama import IllamaConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.objectives.simmim import SimMIMConfig
from pretrain.patches import patchify

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
GRID = Grid(4, 4)


def build(config, **encoder):
    torch.manual_seed(0)
    backbone = IllamaConfig("tiny", patch_size=4, width=48, depth=2, heads=3, **encoder).build(GRID, 3, MEAN, STD)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone, config.build(backbone)


def dependence(backbone, objective):
    """hidden patches x visible patches of one image, whether the prediction of one depends on the other; and their
    ids."""
    images = torch.randint(60, 190, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = Mask.cut(torch.rand(1, 16, generator=torch.Generator().manual_seed(1)), 6)
    base = patchify(objective.reconstruct(backbone, images, mask), 4)
    rows = []
    for patch in mask.ids_keep[0].tolist():
        other = images.clone()
        other[:, :, patch // 4 * 4 : patch // 4 * 4 + 4, patch % 4 * 4 : patch % 4 * 4 + 4] += 50
        rows.append((patchify(objective.reconstruct(backbone, other, mask), 4) != base).any(-1)[0, mask.ids_mask[0]])
    return torch.stack(rows, dim=1), mask.ids_mask[0], mask.ids_keep[0]


def test_in_place_a_hidden_patch_sees_only_what_comes_before_it():
    found, hidden, visible = dependence(*build(SimMIMConfig(), mode="exact", soft_mask=None))
    assert torch.equal(found, visible[None] < hidden[:, None]) and found.any() and not found.all()


@pytest.mark.parametrize("encoder", [{"mode": "exact", "soft_mask": None}, {"soft_mask": None}], ids=["exact", "paper"])
def test_maes_decoder_sees_every_visible_patch_whatever_the_encoders_mask(encoder):
    config = PixelMAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2, norm_pixels=False)
    found, _, _ = dependence(*build(config, **encoder))
    assert found.all()
