"""What is said of the loss where a soft mask fell to its end: by hand on curves that are known, noise and all."""

import random

import pytest

from pretrain.backbones.soft_mask import SoftMask
from pretrain.tracking.cutoff import cutoff_step, jump_at, words


def alphas(schedule, steps=200, made=None):
    return [(step + 1, schedule.alpha(step, steps, 1.0)) for step in range(made or steps)]


def losses(steps=400, cutoff=200, jump=0.1, fades=40, noise=0.0, low=0.5, fall=0.0):
    """Level low, jump more from the step after the cutoff on, fading in a line until it is gone and a little more."""
    rng = random.Random(0)
    level = [low * (1 - fall * step / steps) + max(jump * (1 - (step - cutoff) / fades), -0.01) * (step >= cutoff)
             for step in range(steps)]  # fmt: skip
    return [(step + 1, value + rng.gauss(0, noise)) for step, value in enumerate(level)]


def test_the_cutoff_is_the_first_step_trained_with_alpha_at_its_end():
    assert cutoff_step(alphas(SoftMask("constant", 0.5))) == 101
    assert cutoff_step(alphas(SoftMask("linear", 0.5))) == 100  # the hundredth of its steps has alpha 0 already
    assert cutoff_step(alphas(SoftMask("constant", 0.25, end=0.5))) == 51


@pytest.mark.parametrize(
    ("schedule", "made"),
    [(SoftMask("constant", 0.5), 100), (SoftMask("linear", 0.5), 60), (SoftMask("constant", 0), None),
     (SoftMask("linear", 0.5, end=1), None)],
)  # fmt: skip
def test_where_alpha_has_not_come_to_its_end_or_never_moved_there_is_no_cutoff(schedule, made):
    assert cutoff_step(alphas(schedule, made=made)) is None


def test_a_jump_is_measured_against_the_steps_before_and_its_recovery_counted_from_the_cutoff():
    jump = jump_at(losses(), 201)
    assert jump.window == 10 and jump.before == pytest.approx(0.5) and jump.left == 200
    assert jump.highest == pytest.approx(0.5 + 0.1 * (1 - 4.5 / 40)) and jump.share == pytest.approx(0.1775)
    assert jump.is_clear and jump.back_after == 46  # the fall from 0.01 to -0.01, steps 37 to 46, sums to -0.01
    said = words(jump, (1.0, 0.0))
    assert "At step 201 the soft mask rose from 0 to 1, and the loss" in words(jump, (0.0, 1.0))
    assert "At step 201 the soft mask fell from 1 to 0, and the loss jumped: 0.5 just before, 0.588" in said
    assert "% (means of 10 steps)" in said and said.endswith("It was back after 46 steps.")


def test_a_loss_that_stays_up_has_not_recovered():
    jump = jump_at(losses(fades=10_000), 201)
    assert jump.back_after is None
    assert words(jump, (1, 0)).endswith("It has not recovered: none of the 200 steps since brought it back.")


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_jump_and_a_jump_of_five_per_cent_is_seen_through_it(seed):
    quiet = [(step, value + random.Random(seed * 1000 + step).gauss(0, 0.015)) for step, value in losses(jump=0)]
    assert not jump_at(quiet, 201).is_clear
    assert "no jump of the loss stands out" in words(jump_at(quiet, 201), (1, 0))
    assert jump_at([(step, value + 0.04 * (200 < step < 230)) for step, value in quiet], 201).is_clear


def test_too_few_steps_on_either_side_say_nothing():
    assert jump_at(losses()[:209], 201) is None and jump_at(losses(), 15) is None and jump_at([], 1) is None
