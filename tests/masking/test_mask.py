"""masking/mask.py"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking.mask import Grid, Mask, places_in_two_groups


def test_ties_go_to_the_lower_id_and_ids_ascend():
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = Mask.cut(scores, 3)
    assert mask.order.tolist() == [[1, 3, 0, 2, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert mask.ids_keep.tolist() == [[0, 1, 3], [0, 1, 2]]
    assert mask.ids_mask.tolist() == [[2, 4, 5], [3, 4, 5]]
    assert mask.hidden.tolist() == [[False, False, True, False, True, True], [False] * 3 + [True] * 3]
    assert (mask.num_visible, mask.num_hidden) == (3, 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.data())
def test_the_parts_of_a_mask_say_the_same_thing(images, patches, data):
    num_visible = data.draw(st.integers(0, patches))
    levels = data.draw(st.integers(1, 1000))  # few levels: many ties
    scores = torch.randint(levels, (images, patches), generator=torch.Generator().manual_seed(patches)).float()
    mask = Mask.cut(scores, num_visible)
    raster = torch.arange(patches)
    for row in range(images):
        hidden = mask.hidden[row]
        assert mask.ids_keep[row].tolist() == raster[~hidden].tolist()
        assert mask.ids_mask[row].tolist() == raster[hidden].tolist()
        assert torch.cat([mask.ids_keep[row], mask.ids_mask[row]])[mask.ids_restore[row]].tolist() == raster.tolist()
        by_hand = sorted(range(patches), key=lambda patch: (-float(scores[row, patch]), patch))
        assert mask.order[row].tolist() == by_hand
    assert mask.num_visible == num_visible


def test_keep_restore_and_fill_put_tokens_where_their_patches_are():
    tokens = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    mask = Mask.cut(torch.rand(2, 6, generator=torch.Generator().manual_seed(1)), 2)
    visible, hidden = mask.keep(tokens), tokens[mask.hidden].reshape(2, 4, 3)
    assert torch.equal(visible, tokens[~mask.hidden].reshape(2, 2, 3))
    assert torch.equal(mask.restore(visible, hidden), tokens)
    filled = mask.fill(visible, torch.tensor([[[-1.0, -2.0, -3.0]]]))
    assert torch.equal(filled[~mask.hidden], tokens[~mask.hidden])
    assert (filled[mask.hidden] == torch.tensor([-1.0, -2.0, -3.0])).all()


def test_mean_over_hidden_is_one_number_an_image():
    values = torch.rand(3, 10)
    mask = Mask.cut(torch.rand(3, 10), 4)
    want = torch.stack([values[row][mask.hidden[row]].mean() for row in range(3)])
    torch.testing.assert_close(mask.mean_over_hidden(values), want)


def test_an_order_cut_twice_gives_nested_masks():
    order = Mask.cut(torch.rand(4, 30), 12).order
    few, many = Mask.from_order(order, 5), Mask.from_order(order, 12)
    assert (many.hidden <= few.hidden).all()
    assert (few.num_visible, many.num_visible) == (5, 12)


def test_a_cut_beyond_the_grid_is_refused():
    with pytest.raises(ValueError, match="num_visible=7 of 6"):
        Mask.cut(torch.rand(1, 6), 7)


def test_a_mask_is_cut_with_one_sort():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Names() as names:
        Mask.cut(torch.rand(2, 50), 10)
    assert sum("sort" in name for name in names.seen) == 1


def test_a_grid_counts_its_patches():
    assert Grid(3, 5).num_patches == 15


@pytest.mark.parametrize("num", [7, 196, 12_000])
def test_places_in_two_groups_are_those_of_a_stable_sort(num):
    rng = torch.Generator().manual_seed(0)
    first = torch.stack([torch.randperm(num, generator=rng) < num // 3 for _ in range(5)])
    wanted = (~first).int().argsort(dim=1, stable=True).argsort(dim=1)
    assert torch.equal(places_in_two_groups(first, num // 3), wanted)
