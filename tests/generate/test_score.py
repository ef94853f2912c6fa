from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from masking.mask import Grid
from masking.rng import generator
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.evaluation.features import extract
from pretrain.generate.distances import compare
from pretrain.generate.feature_space import FeatureSpace, in_batches
from pretrain.generate.score import classification_accuracy_score, score

CLASSES = 3


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ViTConfig("tiny", patch_size=8, width=16, depth=1, heads=2).build(
            Grid(2, 2), 3, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
        )
    return FeatureSpace("FID-own (random)", (16, 16), 3, partial(extract, backbone))


def _images(n: int, seed: int, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """Noise around the colour of each class."""
    labels = torch.arange(n) % CLASSES
    noise = spread * torch.randn(n, 3, 16, 16, generator=generator(seed, "test"))
    colour = torch.eye(3)[labels][:, :, None, None]
    return (0.3 + 0.4 * colour + noise).clamp(0, 1), labels


def test_a_score_is_the_comparison_of_features_and_says_in_which_space(space: FeatureSpace) -> None:
    (real, labels), (made, _) = _images(90, 0), _images(60, 1)
    found = score(made, None, in_batches(real, labels), space)
    expected = compare(space.of(in_batches(real)).features, space.of(in_batches(made)).features)
    assert found == {"space": "FID-own (random)", "bad_images": 0, **expected}
    assert (found["real_images"], found["generated_images"], found["warnings"]) == (90, 60, [])
    assert found["precision"] > 0.6


def test_features_of_real_images_may_be_there_already(space: FeatureSpace) -> None:
    (real, labels), (made, made_labels) = _images(60, 0), _images(60, 1)
    batches = in_batches(real, labels)
    assert score(made, made_labels, space.of(batches), space) == score(made, made_labels, batches, space)


def test_worse_images_score_worse(space: FeatureSpace) -> None:
    real = space.of(in_batches(*_images(120, 0)))
    good, noisy = (score(_images(120, 1, spread)[0], None, real, space) for spread in (0.2, 0.4))
    one_class = score(_images(360, 1)[0][::CLASSES], None, real, space)
    assert good["fid"] < 0.5 * min(noisy["fid"], one_class["fid"])
    assert good["recall"] > 2 * one_class["recall"]


def test_labels_that_say_what_was_made_teach_and_others_do_not(space: FeatureSpace) -> None:
    real = in_batches(*_images(90, 0))
    made, labels = _images(60, 1)
    found = classification_accuracy_score(made, labels, real, space)
    wrong = classification_accuracy_score(made, (labels + 1) % CLASSES, real, space)
    assert found["accuracy"] > 0.95
    assert wrong["accuracy"] < 0.05
    assert found["chance"] == 1 / 3
    assert (found["generated_images"], found["real_images"], found["classes"]) == (60, 90, 3)
    assert score(made, labels, real, space)["accuracy"] == found["accuracy"]


def test_a_class_that_was_never_made_counts_as_wrong_and_is_named(space: FeatureSpace) -> None:
    made, labels = _images(60, 1)
    found = classification_accuracy_score(made[labels < 2], labels[labels < 2], in_batches(*_images(90, 0)), space)
    assert found["accuracy"] <= 2 / 3
    assert any("of classes that the generated images lack (2)" in words for words in found["warnings"])


def test_few_images_are_pointed_out_and_real_ones_without_labels_teach_nothing(space: FeatureSpace) -> None:
    (real, _), (made, labels) = _images(60, 0), _images(9, 1)
    assert any("9 generated images in a space of 16 dimensions" in words
               for words in score(made, None, in_batches(real), space)["warnings"])
    with pytest.raises(ConfigError, match="the real images have no labels"):
        score(made, labels, in_batches(real), space)


def test_progress_hears_of_every_image(space: FeatureSpace) -> None:
    done: list[int] = []
    score(_images(70, 1)[0], None, in_batches(_images(60, 0)[0]), space, on_progress=done.append)
    assert sum(done) == 130
