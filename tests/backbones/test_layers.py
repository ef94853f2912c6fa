"""pretrain/backbones/layers.py"""

import math

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.layers import Attention, Block, sincos_positions


def test_positions_follow_the_formula_column_first():
    table = sincos_positions(Grid(3, 5), 16, num_prefix=2)
    assert table.shape == (1, 17, 16) and (table[0, :2] == 0).all()
    for row in range(3):
        for column in range(5):
            for index in range(4):
                frequency = 10_000 ** (-index / 4)
                want = [math.sin(column * frequency), math.cos(column * frequency)]
                want += [math.sin(row * frequency), math.cos(row * frequency)]
                got = table[0, 2 + row * 5 + column, [index, 4 + index, 8 + index, 12 + index]]
                torch.testing.assert_close(got, torch.tensor(want))


def test_positions_need_a_width_of_four_parts():
    with pytest.raises(ValueError, match="width=18"):
        sincos_positions(Grid(2, 2), 18)


@pytest.mark.parametrize("num_queries", [1, 4, 9])
def test_a_block_asked_for_its_last_rows_gives_them_as_they_are(num_queries):
    torch.manual_seed(0)
    block = Block(32, 4, layer_scale=0.5)
    x = torch.randn(2, 9, 32, requires_grad=True)
    whole, part = block(x)[:, -num_queries:], block(x, num_queries)
    torch.testing.assert_close(part, whole)
    weights = torch.randn_like(part)
    (want,), (got,) = torch.autograd.grad(whole, x, weights), torch.autograd.grad(part, x, weights)
    torch.testing.assert_close(got, want)


def test_attention_sees_tokens_as_a_set():
    torch.manual_seed(0)
    layer, x, order = Attention(32, 4), torch.randn(2, 7, 32), torch.randperm(7)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
