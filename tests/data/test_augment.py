"""A crop is a pure function of its name, has the pixels Pillow would give it, and exists for every image and size."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pretrain.data.augment import _uniforms, center_crop, crop_and_flip, crop_key, random_box, resize_box
from pretrain.data.settings import DataConfig

CFG = DataConfig(train="unused.tar", image_size=(32, 32))
PHOTO = np.array(
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((120, 90), 3)
)


def test_a_crop_is_named_by_seed_position_and_crop_and_by_nothing_else() -> None:
    torch.manual_seed(1)
    first = crop_and_flip(PHOTO, crop_key(5, 1000), CFG)
    torch.manual_seed(2)
    assert torch.equal(first, crop_and_flip(PHOTO, crop_key(5, 1000), CFG))
    for other in (crop_key(6, 1000), crop_key(5, 1001), crop_key(5, 1000, 1)):
        assert not torch.equal(first, crop_and_flip(PHOTO, other, CFG))


def test_a_flip_is_the_mirrored_crop_and_comes_as_often_as_asked() -> None:
    never, always = (replace(CFG, flip_prob=share) for share in (0.0, 1.0))
    mirrored = 0
    for position in range(400):
        key = crop_key(0, position)
        plain = crop_and_flip(PHOTO, key, never)
        assert torch.equal(crop_and_flip(PHOTO, key, always), plain.flip(-1))
        mirrored += torch.equal(crop_and_flip(PHOTO, key, CFG), plain.flip(-1))
    assert 160 < mirrored < 240


def test_boxes_have_the_areas_and_shapes_that_were_asked_for() -> None:
    areas, shapes, corners = [], [], Counter()
    for position in range(2_000):
        top, left, tall, wide = random_box(900, 1200, _uniforms(crop_key(0, position)), (0.2, 1.0), (0.75, 4 / 3))
        assert 0 <= top <= 900 - tall and 0 <= left <= 1200 - wide
        areas.append(tall * wide / (900 * 1200))
        shapes.append(np.log(wide / tall))
        corners[top > (900 - tall) / 2, left > (1200 - wide) / 2] += 1
    assert 0.2 <= min(areas) < 0.21 and 0.95 < max(areas) <= 1.0
    assert 0.45 < np.mean(areas) < 0.6  # under 0.6: a large area fits in few shapes
    assert abs(np.mean(shapes)) < 0.05 and np.log(0.749) < min(shapes) < -0.27 and 0.27 < max(shapes) < np.log(1.335)
    assert min(corners.values()) > 400


@given(
    height=st.integers(1, 2000), width=st.integers(1, 2000), size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    in_chans=st.sampled_from([1, 3, 4]), key=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_every_image_has_a_crop_of_every_size(
    height: int, width: int, size: tuple[int, int], in_chans: int, key: int
) -> None:
    image = np.full((min(height, 4_000_000 // width), width, in_chans), 77, np.uint8)
    crop = crop_and_flip(image, key, replace(CFG, image_size=size))
    assert crop.shape == (in_chans, *size) and crop.dtype == torch.uint8 and crop.is_contiguous()
    assert torch.equal(crop, torch.full_like(crop, 77))
    assert torch.equal(center_crop(image, size), crop)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (3, 500)])
def test_extreme_shapes_are_cut_like_any_other(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for position in range(20):
        assert crop_and_flip(image, crop_key(0, position), CFG).shape == (3, 32, 32)


def test_pixels_are_those_of_pillow() -> None:
    differences = []
    for position in range(40):
        box = random_box(90, 120, _uniforms(crop_key(1, position)), (0.2, 1.0), (0.75, 4 / 3))
        top, left, tall, wide = box
        theirs = Image.fromarray(PHOTO).crop((left, top, left + wide, top + tall)).resize((32, 32), 3)
        ours = resize_box(PHOTO, box, (32, 32)).permute(1, 2, 0).numpy()
        differences.append(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)))
    assert np.mean(differences) <= 0.1 and np.max(differences) <= 4


def test_a_crop_of_the_right_size_is_left_as_it_is() -> None:
    whole = resize_box(PHOTO, (0, 0, 90, 120), (90, 120))
    assert np.array_equal(whole.permute(1, 2, 0).numpy(), PHOTO)


def test_the_centre_crop_takes_the_middle_in_the_shape_of_the_size() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, 20:80] = 200
    assert center_crop(image, (30, 30)).min() == 200  # exactly the middle square
    assert torch.equal(center_crop(PHOTO, (90, 120)), resize_box(PHOTO, (0, 0, 90, 120), (90, 120)))
    wide = center_crop(np.concatenate([np.full((40, 40, 3), v, np.uint8) for v in (0, 255, 0)]), (20, 20))
    assert wide.shape == (3, 20, 20) and wide.min() == 255
