"""A run stops when too large a share of its samples is unusable, or too many in a row; and not before."""

import pytest

from pretrain.data.bad_samples import ErrorBudget
from pretrain.errors import DataError
from pretrain.types import BadSample

EXAMPLE = BadSample(7, "a.tar", "000007", "JPEG cut short")


def test_the_share_is_of_a_hundred_thousand_samples_also_at_the_start() -> None:
    budget = ErrorBudget(ratio=0.001, run=50)
    for step in range(100):
        budget.check(step, 256, 1)
    with pytest.raises(DataError, match=r"101 of the last 25856 .* 100 in 100000 .*'000007' in a\.tar: JPEG cut"):
        budget.check(100, 256, 1, EXAMPLE)


def test_old_bad_samples_are_forgotten() -> None:
    budget = ErrorBudget(ratio=0.001, run=50)
    for step in range(0, 100_000, 10):  # one in 1,000 and a little
        budget.check(step, 100, 1)
    budget = ErrorBudget(ratio=0.001, run=50)
    for step in range(0, 99_000, 990):
        budget.check(step, 1, 1)
    budget.check(200_000, 1, 1)


def test_steps_without_bad_samples_may_be_left_out() -> None:
    every, some = ErrorBudget(0.0001, 5), ErrorBudget(0.0001, 5)
    for step in range(40):
        every.check(step, 64, int(step % 4 == 0))
        if step % 4 == 0:
            some.check(step, 64, 1)
    for budget in (every, some):
        with pytest.raises(DataError, match="11 of the last"):
            budget.check(40, 64, 1)


def test_nothing_but_bad_samples_stops_early() -> None:
    budget = ErrorBudget(ratio=1.0, run=50)
    budget.check(0, 20, 20)
    budget.check(1, 20, 20)
    with pytest.raises(DataError, match="60 samples in a row"):
        budget.check(2, 20, 20, EXAMPLE)


def test_one_good_sample_ends_a_row() -> None:
    budget = ErrorBudget(ratio=1.0, run=50)
    for step in range(20):
        budget.check(step, 20, 20 - step % 2)
    assert DataError.exit_code == 76
