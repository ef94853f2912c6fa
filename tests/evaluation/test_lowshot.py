"""Draws of few labels: balanced, nested over shares, independent over seeds, repeatable."""

import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.evaluation.lowshot import draw, low_shot

LABELS = torch.arange(600) % 3


@pytest.mark.parametrize(("share", "each"), [(0.01, 2), (0.1, 20)])
def test_each_class_has_its_share(share, each):
    rows = draw(LABELS, share, 0)
    assert LABELS[rows].bincount().tolist() == [each] * 3
    assert len(rows.unique()) == len(rows)


def test_a_draw_is_repeatable_and_another_seed_is_another_draw():
    assert torch.equal(draw(LABELS, 0.1, 5), draw(LABELS, 0.1, 5))
    assert not torch.equal(draw(LABELS, 0.1, 5), draw(LABELS, 0.1, 6))


def test_the_smaller_draw_is_part_of_the_larger():
    assert set(draw(LABELS, 0.01, 1).tolist()) < set(draw(LABELS, 0.1, 1).tolist())


def test_less_than_one_image_a_class_is_refused():
    with pytest.raises(ConfigError, match="1% of 200 training images is less than one image for each of 3 classes"):
        draw(LABELS[:200], 0.01, 0)


def test_a_class_with_too_few_images_is_refused():
    labels = torch.cat([torch.zeros(300, dtype=torch.int64), torch.ones(5, dtype=torch.int64)])
    with pytest.raises(ConfigError, match="15 a class, and the smallest class has 5"):
        draw(labels, 0.1, 0)


def test_features_that_give_the_class_away_are_right_from_two_images_in_every_draw():
    x = torch.eye(3)[LABELS]
    assert low_shot(x, LABELS, x, LABELS, 0.01) == (1.0, 0.0)
