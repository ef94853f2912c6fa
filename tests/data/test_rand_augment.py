"""RandAugment and erasing change a crop by its key alone, and leave everybody else's random numbers where they were."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from pretrain.data.augment import crop_key
from pretrain.data.loader import build_loader, with_label
from pretrain.data.rand_augment import change, check_changes
from pretrain.data.settings import DataConfig
from pretrain.data.shards import open_shards
from pretrain.errors import ConfigError
from tests.data.shard_files import samples, write

CFG = DataConfig(train="unused", image_size=(16, 24), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25)
CROP = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_changed_crop_is_named_by_its_key_and_no_shared_generator_moves():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    made = [change(CROP, crop_key(0, position), CFG) for position in range(20)]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    again = [change(CROP, crop_key(0, position), CFG) for position in reversed(range(20))][::-1]
    assert all(torch.equal(one, two) for one, two in zip(made, again, strict=True))
    assert all(crop.shape == CROP.shape and crop.dtype == torch.uint8 for crop in made)
    assert len({crop.numpy().tobytes() for crop in made}) > 15


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "rand-m9-mstd0.5-inc1", "rand-m1-p1", "rand-m0-p1"])
def test_no_draw_of_a_policy_fails_at_either_end_of_its_scale(policy):
    cfg = dataclasses.replace(CFG, rand_augment=policy, erase_prob=0.0)
    made = [change(CROP, crop_key(1, position), cfg) for position in range(400)]
    assert sum(not torch.equal(crop, CROP) for crop in made) > 100


def test_erasing_replaces_one_rectangle_by_noise_as_often_as_asked_and_no_other_pixel():
    erasing = dataclasses.replace(CFG, rand_augment=None)
    changed = [(change(CROP, crop_key(0, position), erasing) != CROP).any(0) for position in range(400)]
    assert 70 < sum(bool(places.any()) for places in changed) < 130
    for places in changed:
        if places.any():
            rows, columns = places.any(1).nonzero(), places.any(0).nonzero()
            assert places[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float().mean() > 0.9
    assert change(CROP, 5, dataclasses.replace(erasing, erase_prob=0.0)) is CROP


def test_a_policy_that_cannot_take_effect_is_refused():
    check_changes(CFG)
    with pytest.raises(ConfigError, match=r"data.rand_augment='m9' is no policy .* rand-m9-mstd0.5-inc1"):
        check_changes(dataclasses.replace(CFG, rand_augment="m9"))
    with pytest.raises(ConfigError, match=r"changes colours and data.in_chans=1"):
        check_changes(dataclasses.replace(CFG, in_chans=1))
    with pytest.raises(ConfigError, match=r"moves what data.boxes=xyxy marks"):
        check_changes(dataclasses.replace(CFG, boxes="xyxy"))


def test_a_sample_without_a_label_of_the_classes_is_a_bad_one_with_the_reason(tmp_path):
    members = [entry for entry in samples(12) if entry[0] != "00004.cls"]
    shards = open_shards(str(write(tmp_path / "a.tar", members)))
    cfg = dataclasses.replace(CFG, batch_size=12, lanes=1, block=4, workers=0)
    loader = build_loader(shards, cfg, 0, rank=0, world=1, accumulation=1, start_step=0, num_classes=9)
    batch = next(loader)
    loader.close()
    assert {bad.key: bad.reason for bad in batch.bad} == {
        "00004": "it has no label, and objective.num_classes=9 needs one of 0 to 8",
        "00009": "its label is 9, and objective.num_classes=9 needs one of 0 to 8",
    }
    assert batch.weight.sum() == 10 and not batch.images[batch.weight == 0].any()
    assert torch.equal(batch.labels >= 0, batch.weight > 0)  # a label of no class would be no column of the scores
    assert with_label({"__label__": -1}, None) == {"__label__": -1}
