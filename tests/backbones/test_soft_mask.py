"""pretrain/backbones/soft_mask.py: alpha of a step, to the digit that the authors logged."""

import numpy as np
import pytest

from pretrain.backbones.soft_mask import SoftMask

PER_EPOCH = 312  # steps: 1,281,167 images in batches of 4096, the last one dropped
TOTAL = 300 * PER_EPOCH


@pytest.mark.parametrize(("cutoff", "mean"), [(25, 0.9800615463520972), (50, 0.9900314122700175)])
def test_the_mean_of_the_first_epoch_is_the_logged_one(cutoff, mean):
    schedule = SoftMask("linear", cutoff, "epochs")
    alphas = [schedule.alpha(step, TOTAL, PER_EPOCH) for step in range(PER_EPOCH)]
    assert np.mean(alphas) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("end", [0.0, 0.5])
def test_linear_is_linspace_with_both_ends_and_then_the_end(end):
    schedule = SoftMask("linear", 2, "epochs", end=end)
    got = [schedule.alpha(step, 40, 10.0) for step in range(40)]
    assert got == pytest.approx([*np.linspace(1, end, 20), *[end] * 20], abs=1e-15)
    assert got[0] == 1 and set(got[19:]) == {end}


def test_constant_is_the_start_and_then_the_end():
    assert [SoftMask("constant", 0.3).alpha(step, 10, 5.0) for step in range(10)] == [1.0] * 3 + [0.0] * 7
    rising = SoftMask("constant", 0.3, start=0.25, end=1.0)
    assert [rising.alpha(step, 10, 5.0) for step in range(10)] == [0.25] * 3 + [1.0] * 7


def test_a_mask_that_is_lifted_rises_from_its_start():
    rising = SoftMask("linear", 0.5, start=0.0, end=1.0)
    assert [rising.alpha(step, 40, 1.0) for step in range(40)] == pytest.approx([*np.linspace(0, 1, 20), *[1] * 20])
    assert rising.initial == 0 and SoftMask("linear", 0, start=0.0, end=1.0).initial == 1


def test_a_cutoff_counts_shares_of_the_run_or_passes_over_the_data():
    run, epochs = SoftMask("constant", 1 / 6, "run"), SoftMask("constant", 50, "epochs")
    assert all(run.alpha(s, TOTAL, PER_EPOCH) == epochs.alpha(s, TOTAL, PER_EPOCH) for s in range(0, TOTAL, 7))
    assert SoftMask("constant", 0).initial == 0 and SoftMask("linear", 0, end=0.5).alpha(0, 10, 1.0) == 0.5
    assert SoftMask("linear", 0.1).alpha(0, 10, 1.0) == 1 and SoftMask("linear", 0.1).alpha(1, 10, 1.0) == 0
