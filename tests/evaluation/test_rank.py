import math

import pytest
import torch

from pretrain.evaluation.rank import effective_rank


def test_multiples_of_one_vector_have_rank_one():
    assert effective_rank(torch.arange(1.0, 9)[:, None] * torch.randn(1, 16)) == pytest.approx(1, abs=1e-4)


def test_directions_used_alike_count_in_full():
    assert effective_rank(torch.eye(12).repeat(5, 1)) == pytest.approx(12)


def test_it_is_the_exponential_of_the_entropy_of_the_singular_values():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    basis = torch.linalg.qr(torch.randn(30, 4, dtype=torch.float64)).Q
    share = [0.5, 0.25, 0.125, 0.125]
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert effective_rank(basis * values) == pytest.approx(expected)


def test_scale_does_not_matter_and_nothing_has_no_rank():
    x = torch.randn(40, 8)
    assert effective_rank(x) == pytest.approx(effective_rank(1000 * x))
    assert math.isnan(effective_rank(torch.zeros(3, 4)))
    assert math.isnan(effective_rank(torch.zeros(0, 4)))
