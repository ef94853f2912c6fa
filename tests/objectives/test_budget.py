"""benchmarks/budget.py: a step moves no more bytes and launches no more kernels than the committed limits."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "budget.py"


@pytest.fixture(scope="module")
def budget():
    spec = importlib.util.spec_from_file_location("budget", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["budget"] = module
    spec.loader.exec_module(module)
    return module


def test_vit_base_stays_within_its_budget(budget):
    (case,) = [case for case in budget.CASES if case.size == "base"]
    assert (case.max_mb, case.max_kernels) == (330, 660)
    got = budget.count(case.size)
    assert got.mb_per_image <= case.max_mb
    assert got.kernels <= case.max_kernels


def test_the_meter_counts_reads_and_writes_and_no_views(budget):
    a, b = torch.zeros(10, 20), torch.zeros(20, 5)
    with budget.Meter() as meter:
        assert (a @ b).mT.shape == (5, 10)
    assert sum(meter.kernels.values()) == 1 and sum(meter.bytes.values()) == 4 * (200 + 100 + 50)
    with budget.Meter() as meter:
        torch.zeros(1, 20).expand(10, 20) + a
    assert meter.bytes["add.Tensor"] == 4 * (20 + 200 + 200)
