import json
import math
from dataclasses import replace

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError, DataError, NumericalError
from pretrain.evaluation.evaluate import evaluate, measure
from pretrain.evaluation.features import Extracted
from pretrain.evaluation.head import Head
from pretrain.evaluation.settings import EvaluationConfig
from pretrain.objectives.base import Objective

BOTH = EvaluationConfig(methods=("knn", "linear"), k=5)


def _split(n, seed, classes=(3, 7, 9), spread=0.5, dim=12):
    rng = torch.Generator().manual_seed(seed)
    place = torch.arange(n) % len(classes)
    centres = torch.randn(len(classes), dim, generator=torch.Generator().manual_seed(99))
    return Extracted(centres[place] + spread * torch.randn(n, dim, generator=rng), torch.tensor(classes)[place], 0)


def _unlabelled(split, count):
    labels = split.labels.clone()
    labels[:count] = -1
    return replace(split, labels=labels)


def test_a_real_encoder_on_images_of_two_colours_is_always_right():
    torch.manual_seed(0)
    backbone = ViTConfig(size="tiny", width=32, depth=2, heads=2, patch_size=8).build(
        Grid(2, 2), 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    )
    rng = torch.Generator().manual_seed(1)

    def batches(n):
        labels = torch.arange(n) % 2
        images = torch.randint(0, 60, (n, 3, 16, 16), dtype=torch.uint8, generator=rng)
        images[labels == 1, 0] += 150
        images[labels == 0, 2] += 150
        return list(zip(images.split(8), labels.split(8), strict=True))

    result = evaluate(backbone, batches(40), batches(20), BOTH)
    assert result["knn"] == result["linear"] == 1.0
    assert (result["train_images"], result["val_images"], result["classes"]) == (40, 20, 2)
    assert result["chance"] == 0.5
    assert 1 <= result["effective_rank"] <= 32
    assert result["warnings"] == []
    assert json.loads(json.dumps(result)) == result


def test_only_the_methods_asked_for_are_measured_and_other_ranks_say_nothing():
    result = measure(_split(60, 1), _split(30, 2), EvaluationConfig(methods=("linear",)))
    assert "linear" in result
    assert "knn" not in result
    backbone = ViTConfig(size="tiny", width=16, depth=1, heads=1, patch_size=8).build(Grid(1, 1), 1, (0.5,), (0.5,))
    assert evaluate(backbone, [], [], BOTH, is_main=False) == {}


def test_without_a_validation_split_no_image_is_tested_against_itself():
    alone = _split(60, 1, spread=0.0)
    noise = replace(alone, features=torch.randn(60, 12, generator=torch.Generator().manual_seed(5)))
    assert measure(alone, None, BOTH)["knn"] == 1.0
    result = measure(noise, None, replace(BOTH, k=1))
    assert result["knn"] < 0.6
    assert result["linear"] < 0.8
    assert result["val_images"] == 0
    assert "no validation split" in result["warnings"][0]


def test_the_same_features_give_the_same_figures():
    assert measure(_split(90, 1, spread=2), _split(60, 2, spread=2), BOTH) == measure(
        _split(90, 1, spread=2), _split(60, 2, spread=2), BOTH
    )


def test_shards_without_labels_are_named_and_refused():
    with pytest.raises(ConfigError, match=r"shards/a\*\.tar have no labels.*\.cls"):
        measure(_unlabelled(_split(30, 1), 30), _split(30, 2), BOTH, names=("shards/a*.tar", "val/"))
    with pytest.raises(ConfigError, match="val/ have no labels"):
        measure(_split(30, 1), _unlabelled(_split(30, 2), 30), BOTH, names=("shards/a*.tar", "val/"))


def test_an_image_without_label_is_left_out_in_words():
    result = measure(_unlabelled(_split(60, 1), 6), _split(30, 2), BOTH)
    assert result["knn"] == 1.0
    assert "6 of 60 images" in result["warnings"][0]


def test_a_class_missing_from_training_counts_as_wrong_in_words():
    result = measure(_split(60, 1, classes=(3, 7)), _split(30, 2, classes=(3, 7, 12)), BOTH)
    assert result["knn"] <= 2 / 3
    assert result["linear"] <= 2 / 3
    assert "10 images" in result["warnings"][0]
    assert "12" in result["warnings"][0]


def test_bad_images_are_counted_and_a_split_of_nothing_else_is_refused():
    result = measure(replace(_split(60, 1), num_bad=2), replace(_split(30, 2), num_bad=3), BOTH)
    assert result["bad_images"] == 5
    assert "2 images" in result["warnings"][0]
    with pytest.raises(DataError, match="4 could not be decoded"):
        measure(Extracted(torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64), 4), _split(30, 2), BOTH)


def test_more_neighbours_than_images_and_the_class_token_are_remarked_on():
    words = " ".join(measure(_split(12, 1), _split(30, 2), replace(BOTH, k=20, pool="cls"))["warnings"])
    assert "only 12 neighbours" in words
    assert "pool=mean" in words


def test_features_that_are_not_finite_are_refused():
    broken = _split(30, 1)
    broken.features[3, 3] = math.nan
    with pytest.raises(NumericalError, match="not finite"):
        measure(broken, _split(30, 2), BOTH)


def _small():
    config = ViTConfig(size="tiny", width=16, depth=1, heads=1, patch_size=8)
    return config.build(Grid(1, 1), 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Told(Objective):
    """A classifier whose scores are the mean of each colour."""

    def classify(self, backbone, images):
        assert not self.training and not backbone.training
        return images.float().mean((2, 3))


def _coloured(labels, colours):
    images = torch.zeros(len(colours), 3, 8, 8, dtype=torch.uint8)
    images[torch.arange(len(colours)), torch.tensor(colours)] = 200
    return [(images, torch.tensor(labels))]


def test_the_head_is_asked_of_the_validation_images_and_nothing_is_learnt_for_it():
    backbone = _small()
    head, alone = Head(Told(), 3), EvaluationConfig(methods=("head",))

    def unread():
        raise AssertionError("training images were read")
        yield

    val = _coloured([0, 1, 2, 2, -1, 7], [0, 1, 2, 1, 0, 0])
    result = evaluate(backbone, unread(), val, alone, head=head)
    assert result["head"] == 3 / 5 and result["chance"] == 2 / 5 and result["val_images"] == 6
    assert "1 of 6 images" in result["warnings"][0] and "classes that the head's 3 lack (7)" in result["warnings"][1]
    both = evaluate(backbone, val, val, replace(alone, methods=("head", "knn"), k=1), head=head)
    assert both["head"] == 3 / 5 and 0 <= both["knn"] <= 1 and both["effective_rank"] >= 1
    assert len(both["warnings"]) == len(set(both["warnings"]))
    assert evaluate(backbone, [], val, alone, head=head, is_main=False) == {}


def test_scores_that_are_not_finite_are_refused():
    backbone = _small()

    class Broken(Told):
        def classify(self, backbone, images):
            return super().classify(backbone, images) / 0 * 0

    with pytest.raises(NumericalError, match="val/ are not finite"):
        evaluate(backbone, [], _coloured([0, 1], [0, 1]), EvaluationConfig(methods=("head",)), head=Head(Broken(), 3),
                 names=("train/", "val/"))  # fmt: skip
