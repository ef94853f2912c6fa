"""The published probe: what it learns, and that its choice never depends on the test split."""

from dataclasses import replace

import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.evaluation.evaluate import measure
from pretrain.evaluation.features import Extracted
from pretrain.evaluation.linear import held_out
from pretrain.evaluation.linear_sgd import fit_sgd, schedule, train_at
from pretrain.evaluation.settings import EvaluationConfig


def clouds(n, seed, spread=1.5):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))
    return centres[labels] + spread * torch.randn(n, 8, generator=rng), labels


def test_separable_features_of_any_scale_are_learnt():
    x, labels = clouds(200, 1, 0.05)
    scale = torch.logspace(-2, 3, 8)
    assert torch.equal(fit_sgd(x[:120] * scale, labels[:120], epochs=20).predict(x[120:] * scale), labels[120:])


def test_the_rate_is_the_best_on_images_held_out_of_training():
    x, labels = clouds(160, 2)
    rates, held, right = (1e-5, 0.1, 30.0), held_out(labels), {}
    for rate in rates:
        probe = train_at(x[~held], labels[~held], rate, 4, 10, 0)
        right[rate] = int((probe.predict(x[held]) == labels[held]).sum())
    assert len(set(right.values())) > 1
    assert fit_sgd(x, labels, rates, 10).rate == max(rates, key=lambda rate: (right[rate], -rate))


def test_corrupt_test_labels_change_the_score_and_not_the_choice():
    cfg = EvaluationConfig(methods=("linear", "linear-sgd"))
    train, val = (Extracted(*clouds(n, seed), 0) for n, seed in ((160, 3), (80, 4)))
    clean, corrupt = measure(train, val, cfg), measure(train, replace(val, labels=(val.labels + 1) % 4), cfg)
    assert clean["linear-sgd"] > corrupt["linear-sgd"]
    assert [clean[key] for key in ("linear_l2", "linear-sgd_lr")] == [
        corrupt[key] for key in ("linear_l2", "linear-sgd_lr")
    ]


def test_the_rate_warms_up_and_falls_to_nothing():
    assert [schedule(done) for done in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_two_images_are_refused():
    with pytest.raises(ConfigError, match="2 training images and needs at least 3"):
        fit_sgd(torch.randn(2, 4), torch.tensor([0, 1]))
