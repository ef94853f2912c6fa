"""The embedded photographs: real shards, equal everywhere, with regions that training never sees."""

import json

import numpy as np
import pytest

from pretrain.data import embedded
from pretrain.data.decode import decode
from pretrain.data.embedded import NUM_TRAIN, NUM_VAL, PHOTOGRAPHS, crop_place, embedded_shards
from pretrain.data.shards import open_shards
from pretrain.errors import ConfigError


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    return folder, embedded_shards(folder, (48, 48))


def test_the_crops_are_balanced_and_decode(packed):
    _, patterns = packed
    for pattern, number in zip(patterns, (NUM_TRAIN, NUM_VAL)):
        shards = open_shards(pattern, index_missing=False)
        assert shards.num_samples == number
        labels = np.concatenate([shards.labels(shard) for shard in range(len(shards.names))])
        assert np.bincount(labels).tolist() == [number // len(PHOTOGRAPHS)] * len(PHOTOGRAPHS)
        assert shards.notes() == []
        for sample in range(0, 100, 7):
            members = shards.read(0, sample)
            height, width = decode(members["jpg"]).shape[:2]
            assert 48 <= height <= 60
            assert 48 <= width <= 60
            assert PHOTOGRAPHS[int(members["cls"])].split(".")[0] in json.loads(members["json"])["name"]


@pytest.mark.parametrize("image_size", [(48, 48), (64, 64), (32, 96), (224, 224)])
def test_no_pixel_is_in_a_train_crop_and_in_a_val_crop(image_size):
    for label, size in enumerate([(512, 512), (300, 451), (720, 720), (303, 384), (660, 550)]):
        seen = {}
        for split, number in (("train", 200), ("val", 60)):
            cover = np.zeros(size, bool)
            for index in range(number):
                top, left, height, width = crop_place(size, image_size, label, split, index)
                assert 0 <= top < top + height <= size[0]
                assert 0 <= left < left + width <= size[1]
                cover[top : top + height, left : left + width] = True
            seen[split] = cover
        assert not (seen["train"] & seen["val"]).any()
        assert seen["train"].mean() > 0.4
        assert seen["val"].mean() > 0.15


def test_they_are_made_once_and_equal_wherever_they_are_made(packed, tmp_path, monkeypatch):
    folder, patterns = packed
    again = embedded_shards(tmp_path, (48, 48))
    for one, other in zip(patterns, again):
        assert open_shards(one).fingerprint == open_shards(other).fingerprint
    monkeypatch.setattr(embedded, "pack", None)  # calling it would fail
    assert embedded_shards(folder, (48, 48)) == patterns


def test_without_scikit_image_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lacuna\[demo\]'"):
        embedded_shards(tmp_path, (48, 48))
