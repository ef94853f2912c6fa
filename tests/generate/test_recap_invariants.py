"""ReCAP's numerical properties: zero change, one layer, several layers, everything in the group; for each family, with
and without a second branch of no class."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masking.attention import op
from pretrain.objectives.token_model import Canvas
from tests.generation_cases import FAMILIES, build, difference, fill, group_on, remembered, rows, tokens_for

every_family = pytest.mark.parametrize("family", FAMILIES)
coded = pytest.mark.parametrize("family", ["maskgit", "mage"])
branches = pytest.mark.parametrize("guided", [False, True], ids=["one branch", "two branches"])
NUM_FILLED = 4


def doubled(backbone, canvas, targets, guided):
    """The canvas told of classes, and behind it the same told of none."""
    if not guided:
        return canvas, targets
    untold = backbone.prefix_ids(None, len(canvas.prefix), canvas.prefix.device)
    two = Canvas(torch.cat([canvas.tokens] * 2), torch.cat([canvas.known] * 2), torch.cat([canvas.prefix, untold]))
    return two, torch.cat([targets] * 2)


def case(family, guided=False, **more):
    backbone, objective = build(family, classes=3 if guided else None, class_drop=0.1 if guided else 0.0, **more)
    canvas, targets = group_on(backbone, labels=torch.tensor([0, 1, 2]) if guided else None)
    return backbone, objective, *doubled(backbone, canvas, targets, guided)


@every_family
@branches
def test_a_local_pass_before_anything_changed_says_what_the_full_one_said(family, guided):
    backbone, objective, canvas, targets = case(family, guided)
    said, memory = remembered(backbone, objective, canvas, targets.shape[1])
    again = objective.look_again(backbone, canvas, memory, targets, 0)
    assert difference(again, rows(said, targets)) < 1e-5
    if guided:
        half = len(again) // 2
        assert difference(again[:half], again[half:]) > 1e-3


@branches
def test_one_layer_is_exact_after_any_change(guided):
    backbone, objective, canvas, targets = case("maskgit", guided, depth=1)
    _, memory = remembered(backbone, objective, canvas, targets.shape[1])
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, len(targets), seed=9))
    again = objective.look_again(backbone, later, memory, targets, NUM_FILLED)
    assert difference(again, rows(objective.look(backbone, later, None), targets)) < 1e-5


@every_family
@pytest.mark.parametrize("depth", [2, 4])
def test_several_layers_are_an_approximation_worth_making(family, depth):
    backbone, objective, canvas, targets = case(family, depth=depth)
    said, memory = remembered(backbone, objective, canvas, targets.shape[1])
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, len(targets), seed=9))
    exact = rows(objective.look(backbone, later, None), targets)
    again = objective.look_again(backbone, later, memory, targets, NUM_FILLED)
    refreshed, stale = (float((x - exact).norm() / exact.norm()) for x in (again, rows(said, targets)))
    assert 1e-4 < refreshed < 0.5 * stale


@every_family
def test_a_group_of_all_positions_is_exact_at_any_depth(family):
    backbone, objective = build(family)
    canvas, targets = group_on(backbone, num_known=0, num_targets=36)
    _, memory = remembered(backbone, objective, canvas, 36)
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, len(targets), seed=9))
    again = objective.look_again(backbone, later, memory, targets, NUM_FILLED)
    assert difference(again, rows(objective.look(backbone, later, None), targets)) < 1e-5


@every_family
def test_what_is_kept_is_every_position_and_only_those_of_non_targets_are_read(family):
    backbone, objective, canvas, targets = case(family)
    said, memory = remembered(backbone, objective, canvas, targets.shape[1])
    front, num = backbone.num_prefix, backbone.grid.num_patches
    stack = memory.encoder if family == "maskgit" else memory.decoder
    assert len(stack.layers) == 4
    assert all(layer.shape == (3, front + num, 2, 4, 12) for layer in stack.layers)
    want = objective.look_again(backbone, canvas, memory, targets, 0).clone()
    is_target = torch.zeros(3, num, dtype=torch.bool).scatter(1, targets, True)
    masked_other = (~canvas.known & ~is_target).long().argmax(1)  # hidden, and not to be decoded
    first = torch.arange(3)
    for slot, matters in ((masked_other + front, True), (canvas.known.long().argmax(1) + front, True),
                          (targets[:, 0] + front, False), (torch.zeros(3, dtype=torch.long), False)):  # fmt: skip
        kept = stack.layers[1][first, slot].clone()
        stack.layers[1][first, slot, 1] += 10  # the value
        assert torch.equal(objective.look_again(backbone, canvas, memory, targets, 0), want) != matters
        stack.layers[1][first, slot] = kept
    assert difference(objective.look_again(backbone, canvas, memory, targets, 0), rows(said, targets)) < 1e-5


@every_family
def test_a_local_pass_sees_filled_targets_and_not_the_canvas_elsewhere(family):
    backbone, objective, canvas, targets = case(family)
    _, memory = remembered(backbone, objective, canvas, targets.shape[1])
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, 3, seed=9))
    want = objective.look_again(backbone, later, memory, targets, NUM_FILLED).clone()
    other = fill(later, canvas.known.long().argmax(1)[:, None], tokens_for(backbone, 3, seed=10))
    assert not torch.equal(other.tokens, later.tokens)
    assert torch.equal(objective.look_again(backbone, other, memory, targets, NUM_FILLED), want)
    changed = fill(later, targets[:, :1], tokens_for(backbone, 3, seed=11))
    again = objective.look_again(backbone, changed, memory, targets, NUM_FILLED)
    assert difference(again[:, NUM_FILLED:], want[:, NUM_FILLED:]) > 1e-4


@every_family
def test_the_order_of_targets_changes_nothing_but_the_order_of_answers(family):
    backbone, objective, canvas, targets = case(family)
    _, memory = remembered(backbone, objective, canvas, targets.shape[1])
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, 3, seed=9))
    want = objective.look_again(backbone, later, memory, targets, NUM_FILLED).clone()
    order = torch.tensor([2, 0, 3, 1, 7, 5, 4, 6])  # filled ones stay in front, as the sampler has them
    again = objective.look_again(backbone, later, memory, targets[:, order], NUM_FILLED)
    assert difference(again, want[:, order]) < 1e-5


def buffered(depth=4, num_targets=8):
    """MAR, a canvas, targets, what a full pass said of them, and its memory, which keeps the buffer."""
    backbone, objective, canvas, targets = case("mar", depth=depth)
    said, memory = remembered(backbone, objective, canvas, num_targets)
    memory.keeps_prefix = True
    return backbone, objective, canvas, targets, rows(said, targets), memory


def test_with_the_buffer_kept_nothing_changed_is_nothing_changed_and_filled_targets_are_seen():
    backbone, objective, canvas, targets, said, memory = buffered()
    assert difference(objective.look_again(backbone, canvas, memory, targets, 0), said) < 1e-5
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, 3, seed=9))
    again = objective.look_again(backbone, later, memory, targets, NUM_FILLED)
    exact = rows(objective.look(backbone, later, None), targets)
    refreshed, stale = (float((x - exact).norm() / exact.norm()) for x in (again, said))
    assert 1e-4 < refreshed < 0.5 * stale
    memory.keeps_prefix = False
    assert difference(objective.look_again(backbone, later, memory, targets, NUM_FILLED), again) > 1e-4


def test_a_kept_buffer_is_read_and_left_as_it_is():
    backbone, objective, canvas, targets, _, memory = buffered()
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, 3, seed=9))
    kept = [layer[:, : backbone.num_prefix].clone() for layer in (*memory.encoder.layers, *memory.decoder.layers)]
    want = objective.look_again(backbone, later, memory, targets, NUM_FILLED).clone()
    layers = (*memory.encoder.layers, *memory.decoder.layers)
    assert all(torch.equal(layer[:, : backbone.num_prefix], one) for layer, one in zip(layers, kept, strict=True))
    memory.encoder.layers[1][:, 0, 1] += 10  # a value of the buffer
    assert difference(objective.look_again(backbone, later, memory, targets, NUM_FILLED), want) > 1e-4


def test_a_kept_buffer_is_not_paid_for():
    backbone, objective, canvas, targets, _, memory = buffered()
    later = fill(canvas, targets[:, :NUM_FILLED], tokens_for(backbone, 3, seed=9))
    kept = products(lambda: objective.look_again(backbone, later, memory, targets, NUM_FILLED))
    memory.keeps_prefix = False
    asked = products(lambda: objective.look_again(backbone, later, memory, targets, NUM_FILLED))
    assert asked > 1.5 * kept


def products(call):
    """FLOPs of matrix products in call()."""
    with op.forced("matmul"), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@coded
@pytest.mark.parametrize("num_targets", [4, 12])
def test_a_local_pass_costs_its_share_of_the_queries(family, num_targets):
    backbone, objective = build(family)
    canvas, targets = group_on(backbone, num_targets=num_targets)
    full = products(lambda: remembered(backbone, objective, canvas, num_targets))
    _, memory = remembered(backbone, objective, canvas, num_targets)
    local = products(lambda: objective.look_again(backbone, canvas, memory, targets, 2))
    length = backbone.grid.num_patches + 1
    head = 2 * 3 * 48 * (48 + 512)  # of a token, which the class token does not pass
    share = (local - num_targets * head) / (full - (length - 1) * head)
    assert share == pytest.approx((num_targets + 1) / length, rel=0.01)
