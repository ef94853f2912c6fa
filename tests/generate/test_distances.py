from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.errors import ConfigError, NumericalError
from pretrain.generate.distances import Moments, compare, frechet, frechet_of, kernel_distance, moments, overlap


def _points(n: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _line(*places: float) -> Tensor:
    return torch.tensor(places, dtype=torch.float64)[:, None]


def _covariance(width: int, seed: int) -> Tensor:
    root = _points(width, width, seed)
    return root @ root.T / width


def test_between_gaussians_with_commuting_covariances_it_is_the_closed_form() -> None:
    mean, spread_x, spread_y = _points(1, 6)[0], torch.arange(1.0, 7).double(), torch.arange(7.0, 1, -1).double()
    turn = torch.linalg.qr(_points(6, 6, seed=1)).Q
    x = Moments(torch.zeros(6, dtype=torch.float64), turn @ spread_x.square().diag() @ turn.T)
    y = Moments(mean, turn @ spread_y.square().diag() @ turn.T)
    expected = float(mean.square().sum() + (spread_x - spread_y).square().sum())
    assert frechet_of(x, y) == pytest.approx(expected, rel=1e-12)


def test_between_any_gaussians_it_is_the_trace_of_the_root_of_the_product() -> None:
    one, two = _covariance(5, 1), _covariance(5, 2)
    zero = torch.zeros(5, dtype=torch.float64)
    common = torch.linalg.eigvals(one @ two).sqrt().sum().real  # (C_x C_y)^(1/2) of the paper has the same trace
    expected = float(one.trace() + two.trace() - 2 * common)
    assert frechet_of(Moments(zero, one), Moments(zero, two)) == pytest.approx(expected, rel=1e-10)
    assert frechet_of(Moments(zero, two), Moments(zero, one)) == pytest.approx(expected, rel=1e-10)


def test_sampled_gaussians_come_close_to_it() -> None:
    x, y = _points(40_000, 4), 2 * _points(40_000, 4, seed=1) + 1
    assert frechet(x, y) == pytest.approx(4 * 1 + 4 * 1, rel=0.02)  # |1|^2 + sum of (2 - 1)^2


@pytest.mark.parametrize("n", [400, 20])  # more than dimensions, and fewer: the covariance lacks rank
def test_a_set_is_at_no_distance_from_itself_and_a_shift_adds_its_square(n: int) -> None:
    x, shift = 10 * _points(n, 64), _points(1, 64, seed=3)
    assert frechet(x, x) < 1e-6
    assert frechet(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-8)


def test_moments_are_those_with_n_minus_1() -> None:
    x = _points(9, 3)
    assert torch.allclose(moments(x).covariance, torch.cov(x.T), atol=1e-14)


def test_the_kernel_distance_is_the_double_sum_over_pairs() -> None:
    x, y = _points(5, 3), _points(4, 3, seed=1) + 1

    def mean(a: Tensor, b: Tensor, *, others: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (others and i == j)]
        return sum((float(a[i] @ b[j]) / 3 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean(x, x, others=True) + mean(y, y, others=True) - 2 * mean(x, y, others=False)
    assert kernel_distance(x, y, chunk=2) == pytest.approx(expected, rel=1e-12)


def test_the_kernel_distance_has_no_bias_where_the_frechet_distance_has() -> None:
    halves = [(_points(50, 16, 2 * s), _points(50, 16, 2 * s + 1)) for s in range(40)]
    values = torch.tensor([kernel_distance(x, y) for x, y in halves])
    assert abs(float(values.mean())) < 3 * float(values.std()) / len(values) ** 0.5
    assert min(frechet(x, y) for x, y in halves) > 1


def test_the_four_shares_of_points_on_a_line_worked_by_hand() -> None:
    real, generated = _line(0, 1, 2, 10), _line(0.5, 1.5, 5, 30)
    # k=1, real balls: [-1, 1] [0, 2] [1, 3] [2, 18]; generated ones: [-.5, 1.5] [.5, 2.5] [1.5, 8.5] [5, 55]
    found = overlap(real, generated, k=1, k_density=1)
    assert found["precision"] == 3 / 4  # 30 lies in none
    assert found["recall"] == 4 / 4  # 0 and 1, 1 and 2, 2, 10
    assert found["density"] == (2 + 2 + 1 + 0) / 4
    assert found["coverage"] == 4 / 4
    # k=2: [-2, 2] [0, 2] [0, 4] [1, 19]
    assert overlap(real, generated, k=1, k_density=2)["density"] == (3 + 4 + 1 + 0) / (2 * 4)


def test_the_four_shares_are_those_of_the_definitions_pair_by_pair() -> None:
    real, generated = _points(60, 3), 1.2 * _points(45, 3, seed=1) + 0.6
    between = (generated[:, None] - real).norm(dim=-1)

    def reach(points: Tensor, k: int) -> Tensor:
        return (points[:, None] - points).norm(dim=-1).sort(dim=1).values[:, k]  # the point itself comes first

    expected = {
        "precision": float((between <= reach(real, 3)).any(1).double().mean()),
        "recall": float((between.T <= reach(generated, 3)).any(1).double().mean()),
        "density": float((between <= reach(real, 5)).double().sum(1).mean() / 5),
        "coverage": float((between <= reach(real, 5)).any(0).double().mean()),
    }
    assert overlap(real, generated, chunk=16) == pytest.approx(expected, rel=1e-12)
    assert 0.2 < min(expected.values())
    assert max(expected["precision"], expected["recall"], expected["coverage"]) < 1


def test_what_lies_on_the_edge_of_a_ball_is_inside_and_copies_are_found_at_any_scale() -> None:
    assert overlap(_line(0, 1, 3), _line(-1, -1.5, 9), k=1, k_density=1)["precision"] == 1 / 3
    real = 1e4 + 0.01 * _points(60, 40)
    twice = real.repeat(2, 1)  # the nearest other of each is its copy: balls of no size
    found = overlap(twice, real[:20], k=1, k_density=1)
    assert (found["precision"], found["density"], found["coverage"]) == (1.0, 2.0, 1 / 3)


def test_density_may_exceed_1_and_a_point_in_the_middle_is_in_most_balls() -> None:
    found = overlap(_points(200, 2), 0.05 * _points(100, 2, seed=1))
    assert found["density"] > 1.2


def test_a_collapsed_set_is_precise_and_recalls_little() -> None:
    real = _points(400, 4)
    whole = overlap(real, _points(400, 4, seed=1))
    collapsed = overlap(real, real[:1] + 0.01 * _points(400, 4, seed=1))
    assert min(whole["precision"], whole["recall"], whole["coverage"]) > 0.7
    assert collapsed["precision"] > 0.95
    assert collapsed["recall"] < 0.02
    assert collapsed["coverage"] < 0.1


def test_a_set_far_away_shares_nothing() -> None:
    found = overlap(_points(50), _points(50, seed=1) + 100)
    assert set(found.values()) == {0.0}


def test_neither_order_nor_the_size_of_chunks_changes_anything() -> None:
    real, generated = _points(150), _points(130, seed=1) + 0.5
    found = compare(real, generated)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    for again in (compare(real[order], generated.flip(0)), compare(real, generated, chunk=7)):
        assert {k: v for k, v in again.items() if k != "warnings"} == pytest.approx(
            {k: v for k, v in found.items() if k != "warnings"}, rel=1e-9
        )
        for name in ("precision", "recall", "density", "coverage"):
            assert again[name] == found[name]


def test_float32_features_are_compared_in_float64() -> None:
    x = (1000 + _points(100, 4)).float()
    assert frechet(x, x + 0.5) == pytest.approx(1.0, rel=1e-6)


def test_what_cannot_be_compared_is_refused_and_few_images_are_pointed_out() -> None:
    with pytest.raises(ConfigError, match="5 real and 50 generated images are too few to compare; give 6"):
        compare(_points(5), _points(50))
    with pytest.raises(ConfigError, match="not of one space"):
        compare(_points(50, 8), _points(50, 9))
    with pytest.raises(ConfigError, match="k=0"):
        compare(_points(50), _points(50), k=0)
    with pytest.raises(NumericalError, match="generated images are not finite"):
        compare(_points(50), _points(50) / 0)
    assert compare(_points(50), _points(50))["warnings"] == []
    words = compare(_points(50, 64), _points(65, 64))["warnings"]
    assert len(words) == 1
    assert "50 real images in a space of 64 dimensions" in words[0]
