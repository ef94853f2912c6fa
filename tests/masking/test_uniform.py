"""masking/strategies/uniform.py and masking/ratio.py"""

import pytest
import torch

from masking.draw import draw
from masking.mask import Grid
from masking.ratio import FixedRatio
from masking.rng import generator
from masking.strategies.uniform import Uniform


@pytest.mark.parametrize(
    ("patches", "hidden", "visible"), [(196, 0.75, 49), (196, 0.9, 19), (256, 0.75, 64), (10, 0.9, 1), (196, 0.4, 117)]
)
def test_the_visible_share_is_rounded_down_as_in_mae(patches, hidden, visible):
    assert FixedRatio(hidden).num_visible(Grid(1, patches), generator(0)) == visible


def test_every_patch_is_hidden_equally_often_and_alone():
    images = 4000
    mask = draw(Uniform(), Grid(8, 8), torch.arange(images), 5, 0)
    share = mask.hidden.float().mean(0)
    assert (share - 0.75).abs().max() < 4.5 * (0.75 * 0.25 / images) ** 0.5
    together = torch.cov(mask.hidden.float().T)
    apart = together - together.diag().diag()
    assert apart.abs().max() < 0.02
