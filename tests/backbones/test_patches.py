"""pretrain/patches.py"""

import pytest
import torch

from pretrain.patches import PatchScale, denormalize, gather_patches, normalize, patchify, unpatchify

MEAN, STD = (0.485, 0.456), (0.229, 0.224)


def some_images():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 2, 12, 20), dtype=torch.uint8, generator=rng)


def test_a_patch_is_laid_out_as_a_flattened_convolution_kernel():
    images = some_images()
    patches = patchify(images, 4)
    assert patches.shape == (2, 15, 32)
    assert torch.equal(patches[1, 7].reshape(2, 4, 4), images[1, :, 4:8, 8:12])
    assert torch.equal(unpatchify(patches, 4, 3, 5), images)


def test_gathered_patches_are_rows_of_all_patches():
    images = some_images()
    ids = torch.tensor([[0, 3, 14], [5, 6, 7]])
    want = patchify(images, 4).gather(1, ids[..., None].expand(-1, -1, 32))
    assert torch.equal(gather_patches(images, 4, ids), want)


@pytest.mark.parametrize("cut", [lambda x: x, lambda x: patchify(x, 4)], ids=["images", "patches"])
def test_normalize_is_its_formula_and_denormalize_undoes_it(cut):
    images = some_images()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    got = normalize(cut(images), MEAN, STD)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, cut((images / 255 - mean) / std), rtol=0, atol=1e-6)
    torch.testing.assert_close(denormalize(got, MEAN, STD), cut(images / 255), rtol=0, atol=1e-6)


def test_the_modules_constants_give_the_same_numbers():
    patches = patchify(some_images(), 4)
    scale = PatchScale(MEAN, STD, 4).bfloat16()
    torch.testing.assert_close(scale(patches), normalize(patches, MEAN, STD), rtol=0, atol=2e-6)
    assert torch.equal(scale(normalize(patches, MEAN, STD)), normalize(patches, MEAN, STD))
    assert not scale.state_dict()
