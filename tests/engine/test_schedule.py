"""The learning rate: warm-up, peak, cosine, end."""

import pytest

from pretrain.engine.schedule import rate
from pretrain.engine.settings import OptimConfig

OPTIM = OptimConfig(base_lr=1e-3, warmup=0.1, final_lr_ratio=0.1)


def test_the_peak_scales_with_the_global_batch():
    assert rate(99, 1000, OPTIM, 512) == pytest.approx(2e-3)
    assert rate(100, 1000, OPTIM, 512) == pytest.approx(2e-3)


def test_warm_up_is_linear_and_its_first_step_already_moves():
    rates = [rate(step, 1000, OPTIM, 256) for step in range(100)]
    assert rates == pytest.approx([1e-3 * (step + 1) / 100 for step in range(100)])


def test_half_a_cosine_leads_down_to_the_final_share():
    rates = [rate(step, 1000, OPTIM, 256) for step in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert rate(550, 1000, OPTIM, 256) == pytest.approx(1e-3 * 0.55)
    assert rate(1000, 1000, OPTIM, 256) == pytest.approx(1e-4)
    assert rate(999, 1000, OPTIM, 256) == pytest.approx(1e-4, rel=1e-4)


def test_no_warm_up_starts_at_the_peak_and_one_step_is_enough():
    assert rate(0, 1, OptimConfig(base_lr=1e-3, warmup=0.0), 256) == 1e-3
