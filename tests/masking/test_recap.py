"""masking/recap.py: the schedules that papers print, what a plan costs, orders, and keys and values kept in place."""

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masking.attention.op import self_attention
from masking.recap import Decay, KeyValues, Plan, decoding_counts, halton_order, still_masked

PUBLISHED = [  # of MaskGIT-r: T, P, u, full and local passes, cost in full ones
    ((32, 12, 1), (22, 10), 22.94), ((24, 10, 1), (17, 7), 17.91), ((20, 10, 1), (15, 5), 15.83),
    ((16, 8, 1), (12, 4), 12.83), ((16, 0, 1), (8, 8), 9.03),
]  # fmt: skip


def passes(plan, counts):
    full = len(plan.groups(counts))
    return full, len(counts) - full


@pytest.mark.parametrize(
    ("num", "steps", "counts"),
    [
        (256, 8, (5, 15, 24, 31, 39, 45, 48, 49)),
        (256, 12, (3, 6, 11, 15, 18, 22, 26, 27, 31, 31, 33, 33)),
        (64, 8, (2, 3, 6, 8, 10, 11, 12, 12)),
        (256, 1, (256,)),
        (5, 5, (1, 1, 1, 1, 1)),
    ],
)
def test_maskgit_decodes_so_many_in_each_step(num, steps, counts):
    assert decoding_counts(num, steps) == counts


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(get_args(Decay)))
def test_every_position_is_decoded_once_and_every_step_decodes_one(num, steps, decay):
    if steps > num:
        with pytest.raises(ValueError, match=f"{steps} steps for {num} tokens to generate; use 1 to {num}"):
            decoding_counts(num, steps, decay)
        return
    counts = decoding_counts(num, steps, decay)
    assert len(counts) == steps and sum(counts) == num and min(counts) >= 1


@pytest.mark.parametrize("decay", get_args(Decay))
def test_what_is_still_masked_falls_from_all_to_none(decay):
    shares = [still_masked(step / 20, decay) for step in range(21)]
    assert shares[0] == pytest.approx(1) and shares[-1] == pytest.approx(0)
    assert all(one > other for one, other in itertools.pairwise(shares))


@pytest.mark.parametrize(("plan", "wanted", "cost"), PUBLISHED)
def test_the_plans_of_maskgit_take_the_published_passes_and_cost_what_the_formula_says(plan, wanted, cost):
    counts = decoding_counts(256, plan[0], "power")
    assert passes(Plan(*plan), counts) == wanted
    assert Plan(*plan).cost(counts, 1) == pytest.approx(cost, abs=0.005)


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [(96, (72, 24)), (84, (63, 21)), (56, (42, 14)), (36, (27, 9)), (128, (96, 32)), (48, (36, 12))],
)
def test_the_plans_of_mar_take_the_published_passes(steps, wanted):
    assert passes(Plan(steps, steps // 2, 1), decoding_counts(256, steps)) == wanted


def test_the_cost_is_counted_by_queries():
    plan, counts = Plan(4, 1, 2), (3, 4, 5, 8)
    assert plan.groups(counts) == [(3,), (4, 5, 8)]
    assert plan.cost(counts, 5) == pytest.approx(2 + 2 * (17 + 5) / 25)
    assert plan.cost(counts, 5, keeps_extra=True) == pytest.approx(2 + 2 * 17 / 25)
    assert plan.cost(counts, 5, num_given=10) == pytest.approx(2 + 2 * (17 + 5) / 35)
    assert Plan(4).cost(counts, 5) == 4


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(0), "0 steps for 9 tokens to generate; use 1 to 9"),
        (Plan(3, -1), "full_first=-1 and local=0; both must be 0 or more"),
        (Plan(3, 0, -2), "full_first=0 and local=-2; both must be 0 or more"),
        (Plan(3, 3, 1), "the first 3 of 3 steps are full; use fewer than 3, or no local steps"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(plan, words):
    with pytest.raises(ValueError, match=words):
        plan.check(9)


def test_no_such_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match="no schedule 'exp'; there are cosine, arccos, linear, square, power"):
        decoding_counts(9, 3, "exp")


def test_halton_visits_every_position_and_spreads_the_first_ones():
    order = halton_order(8, 8)
    assert sorted(order) == list(range(64))
    assert order[:4] == [4 * 8 + 2, 2 * 8 + 5, 6 * 8 + 0, 1 * 8 + 3]  # (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9)
    quarters = [sum((place // 32, place % 8 // 4) == corner for place in order[:16])
                for corner in ((0, 0), (0, 1), (1, 0), (1, 1))]  # fmt: skip
    assert all(3 <= number <= 5 for number in quarters)
    assert sorted(halton_order(3, 5)) == list(range(15))


def projection(length, seed=0):
    return torch.randn(2, length, 3, 2, 8, generator=torch.Generator().manual_seed(seed))


def test_a_refreshed_cache_is_attention_of_the_newest_keys_written_in_place():
    whole, kept = projection(10), KeyValues()
    assert torch.equal(kept.record().attend(0, whole), self_attention(whole))
    storage = kept.layers[0].data_ptr()
    slots = torch.tensor([[1, 4, 7], [9, 0, 2]])
    fresh = projection(3, seed=1)
    later = whole.clone()
    for image in range(2):
        later[image, slots[image]] = fresh[image]
    want = self_attention(later)
    got = kept.refresh(slots).attend(0, fresh)
    for image in range(2):
        torch.testing.assert_close(got[image], want[image, slots[image]])
    assert torch.equal(kept.layers[0], later[:, :, 1:]) and kept.layers[0].data_ptr() == storage


def test_room_behind_the_context_is_seen_only_as_far_as_it_is_filled():
    whole, kept = projection(6), KeyValues()
    kept.record(room=4).attend(0, whole)
    assert kept.layers[0].shape == (2, 10, 2, 2, 8)
    fresh = projection(2, seed=1)
    got = kept.refresh(torch.tensor([[6, 7], [6, 7]]), 8).attend(0, fresh)
    torch.testing.assert_close(got, self_attention(torch.cat([whole, fresh], dim=1))[:, 6:])
