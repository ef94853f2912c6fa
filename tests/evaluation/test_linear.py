import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pretrain.evaluation.linear import STRENGTHS, fit_at, fit_probe, held_out


@pytest.fixture(scope="module")
def overlapping():
    rng = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 5, (1200,), generator=rng)
    centres = torch.randn(5, 24, generator=rng)
    scale = torch.logspace(-2, 2, 24)  # as unequal as features of a deep network
    return (centres[labels] + 2 * torch.randn(1200, 24, generator=rng)) * scale, labels


def test_weights_equal_scikit_learns_logistic_regression(overlapping):
    x, labels = overlapping
    train, truth, strength = x[:800], labels[:800], 1e-2
    ours = fit_at(train, truth, strength, 5)
    scaler = StandardScaler().fit(train.double().numpy())
    theirs = LogisticRegression(C=1 / (strength * len(train)), tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(train.double().numpy()), truth.numpy())
    assert torch.allclose(ours.weight, torch.from_numpy(theirs.coef_), atol=1e-4)
    expected = theirs.predict(scaler.transform(x[800:].double().numpy()))
    assert ours.predict(x[800:]).tolist() == expected.tolist()


def test_the_same_features_give_the_same_probe_to_the_bit(overlapping):
    x, labels = overlapping
    one, two = fit_probe(x[:400], labels[:400]), fit_probe(x[:400].clone(), labels[:400].clone())
    assert torch.equal(one.weight, two.weight)
    assert one.strength == two.strength


def test_a_longer_or_shifted_feature_changes_nothing(overlapping):
    x, labels = overlapping
    plain = fit_probe(x[:400], labels[:400], (1e-2,)).predict(x[400:])
    moved = fit_probe(x[:400] * 50 + 7, labels[:400], (1e-2,)).predict(x[400:] * 50 + 7)
    assert (plain == moved).float().mean() > 0.995


def test_the_strength_is_chosen_on_images_held_out_of_the_training_split(overlapping):
    x, labels = overlapping
    x, labels = x[:120], labels[:120]
    held = held_out(labels)
    right = {}
    for strength in STRENGTHS:
        probe = fit_at(x[~held], labels[~held], strength, 5)
        right[strength] = int((probe.predict(x[held]) == labels[held]).sum())
    best = max(STRENGTHS, key=lambda strength: (right[strength], strength))
    assert len(set(right.values())) > 1
    assert fit_probe(x, labels).strength == best


def test_every_fifth_image_of_each_class_is_held_out():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 3)
    held = held_out(labels)
    assert held.nonzero()[:, 0].tolist() == [4, 9, 14]
    assert held_out(torch.tensor([0, 1])).tolist() == [False, True]


def test_a_feature_that_never_changes_is_harmless(overlapping):
    x, labels = overlapping
    x = torch.cat([x[:300], torch.full((300, 1), 3.0)], dim=1)
    probe = fit_probe(x, labels[:300], (1e-2,))
    assert bool(torch.isfinite(probe.weight).all())
    assert float(probe.weight[:, -1].abs().max()) < 1e-6
