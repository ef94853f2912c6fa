"""pretrain/objectives/alignment.py: the matrix, the weights of levels, the targets and the distance by numbers."""

import pytest
import torch

from masking.rng import generator
from pretrain.objectives.alignment import (
    Alignment,
    comparable,
    contributions,
    distance,
    initial_matrix,
    level_weights,
    whiten,
)


@pytest.mark.parametrize(("error", "want"), [(0.5, 0.25), (1.0, 1.0), (2.0, 3.0), (3.0, 5.0)])
def test_the_distance_is_a_square_up_to_one_and_a_line_beyond(error, want):
    wanted = torch.randn(2, 3, 4)
    for sign in (1, -1):
        torch.testing.assert_close(distance(wanted + sign * error, wanted), torch.full((2,), want))


def test_the_first_losses_are_those_of_knowing_nothing():
    """0.849 where zero is predicted, 1.439 for a prediction of unit variance that knows nothing of the target."""
    wanted = whiten(torch.randn(8, 64, 768, generator=generator(1)))
    other = torch.randn(wanted.shape, generator=generator(2))
    assert float(distance(torch.zeros_like(wanted), wanted).mean()) == pytest.approx(0.849, abs=0.004)
    assert float(distance(other, wanted).mean()) == pytest.approx(1.439, abs=0.004)


def test_whitened_targets_have_mean_zero_and_variance_one_for_each_token():
    states = torch.randn(2, 5, 768, generator=generator(3)) * 4 + 2
    states[:, :, 7] *= 60  # the massive channel that CLIP's stream has
    white = whiten(states.bfloat16())
    assert white.dtype == torch.float32
    assert white.mean(-1).abs().max() < 1e-5
    assert (white.var(-1, unbiased=False) - 1).abs().max() < 1e-3
    torch.testing.assert_close(white.norm(dim=-1), torch.full((2, 5), 768**0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(comparable(states, "l2").norm(dim=-1), torch.ones(2, 5))
    assert torch.equal(comparable(states, "none"), states)


@pytest.mark.parametrize(
    ("levels", "count", "num", "want"),
    [
        ("top", 5, 12, dict.fromkeys(range(7, 12), 0.2)),
        ("top", 5, 3, {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}),
        ("middle", 4, 12, {4: 0.25, 5: 0.25, 6: 0.25, 7: 0.25}),
        ("all", 5, 4, {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}),
        ("last", 5, 4, {3: 1.0}),
        ("linear", 5, 4, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    ],
)
def test_levels_count_as_they_are_named_and_sum_to_one(levels, count, num, want):
    weights = level_weights(levels, count, num)
    assert sum(weights) == pytest.approx(1)
    assert {level: weight for level, weight in enumerate(weights) if weight} == pytest.approx(want)


def test_the_matrix_starts_as_the_identity_and_a_little_of_everything_or_as_a_mean():
    square, flat = initial_matrix(12, 12), initial_matrix(24, 12)
    torch.testing.assert_close(square.diagonal(), torch.full((12,), 1.01))
    torch.testing.assert_close(square[0, 1:], torch.full((11,), 0.01))
    torch.testing.assert_close(square.sum(1), torch.full((12,), 1.12))
    torch.testing.assert_close(initial_matrix(24, 24).sum(1), torch.full((24,), 1.24))
    assert flat.shape == (24, 12)
    torch.testing.assert_close(flat.sum(1), torch.ones(24))


def test_the_matrix_learns_at_the_levels_that_count_and_nowhere_else_and_reaches_every_layer():
    torch.manual_seed(0)
    layers = [torch.randn(2, 6, 8, requires_grad=True) for _ in range(12)]
    targets = [whiten(torch.randn(2, 6, 10)) for _ in range(5)]
    alignment = Alignment(level_weights("top", 5, 12), 12, 8, 10, "linear", mixes=True)
    alignment.total(alignment(layers, targets)).mean().backward()
    grad = alignment.mixing.weight.grad
    assert (grad[7:] != 0).all() and not grad[:7].any()
    assert all(layer.grad.abs().sum() > 0 for layer in layers)
    assert len(alignment.adaptors) == 5  # levels that do not count have none


def test_without_mixing_a_level_is_compared_with_the_layer_of_its_place():
    torch.manual_seed(0)
    layers = [torch.randn(2, 6, 8) for _ in range(4)]
    targets = [whiten(torch.randn(2, 6, 10)) for _ in range(2)]
    alignment = Alignment(level_weights("top", 2, 4), 4, 8, 10, "mlp", mixes=False)
    found = alignment(layers, targets)
    for row, adaptor, layer, wanted in zip(found, alignment.adaptors, layers[2:], targets):
        torch.testing.assert_close(row, distance(adaptor(layer), wanted))
    assert torch.equal(alignment.matrix(), torch.eye(4))


def test_a_mix_is_the_sum_over_layers_that_the_paper_writes():
    torch.manual_seed(0)
    layers = [torch.randn(2, 6, 8) for _ in range(3)]
    alignment = Alignment(level_weights("last", 1, 5), 3, 8, 8, "linear", mixes=True)
    with torch.no_grad():
        alignment.mixing.weight.normal_()
    want = sum(alignment.mixing.weight[4, layer] * layers[layer] for layer in range(3))
    torch.testing.assert_close(alignment.mixing(layers, (4,))[0], want)


def test_contributions_are_shares_with_signs_whatever_the_scale_of_a_row():
    matrix, scales = torch.tensor([[2.0, -1.0], [0.2, -0.1]]), torch.tensor([1.0, 6.0])
    shares = contributions(matrix, scales)
    torch.testing.assert_close(shares, torch.tensor([[0.25, -0.75], [0.25, -0.75]]))
