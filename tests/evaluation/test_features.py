from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.evaluation.features import extract, interleave

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _backbone(**options):
    torch.manual_seed(0)
    settings = {"size": "tiny", "width": 32, "depth": 3, "heads": 2, "patch_size": 8, **options}
    return ViTConfig(**settings).build(Grid(4, 4), 3, MEAN, STD)


def _images(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng), torch.arange(n)


def _batches(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


def test_a_feature_is_the_mean_of_the_patch_tokens_or_the_class_token():
    backbone = _backbone(registers=2).eval()
    images, labels = _images(5)
    with torch.no_grad():
        sequence = backbone(backbone.embed(images)).sequence
    mean = extract(backbone, _batches(images, labels, 2))
    cls = extract(backbone, _batches(images, labels, 2), pool="cls")
    assert mean.features.shape == (5, 32)
    assert mean.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(mean.features, sequence[:, 3:].mean(1), atol=1e-6)
    assert torch.allclose(cls.features, sequence[:, 0], atol=1e-6)


def test_an_inner_layer_is_normalised_as_the_last_one_is():
    backbone = _backbone().eval()
    images, labels = _images(4)
    with torch.no_grad():
        features = backbone(backbone.embed(images), layers=(1,))
        expected = backbone.norm(features.layers[0])[:, 1:].mean(1)
    assert torch.allclose(extract(backbone, _batches(images, labels, 4), layer=1).features, expected, atol=1e-6)
    last, named = (extract(backbone, _batches(images, labels, 4), layer=layer).features for layer in (-1, 2))
    assert torch.equal(last, named)


def test_weights_and_modes_are_as_they_were_and_dropout_is_off():
    backbone = _backbone(drop_path=0.5).train()
    backbone.blocks[1].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [part.training for part in backbone.modules()]
    images, labels = _images(4)
    one, two = (extract(backbone, _batches(images, labels, 2)).features for _ in range(2))
    assert torch.equal(one, two)
    assert not one.requires_grad
    assert [part.training for part in backbone.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


class _Batches(list):
    """As the loader's: what could not be decoded is known after the pass."""

    def __iter__(self):
        self.bad = []
        yield from super().__iter__()
        self.bad = ["shard-0/000007"]


def test_a_bad_image_has_no_row_and_is_counted_and_an_unlabelled_one_is_told_apart():
    images, labels = _images(6)
    labels[4] = -1
    found = extract(_backbone(), _Batches(_batches(images, labels, 4)))
    assert found.labels.tolist() == [0, 1, 2, 3, -1, 5]
    assert found.num_bad == 1
    assert found.labelled.labels.tolist() == [0, 1, 2, 3, 5]
    assert found.labelled.features.shape == (5, 32)


def test_bf16_is_near_float32_and_comes_back_as_float32():
    images, labels = _images(4)
    exact = extract(_backbone(), _batches(images, labels, 4)).features
    rough = extract(_backbone(), _batches(images, labels, 4), dtype=torch.bfloat16).features
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_give_the_features_of_one_rank_to_the_bit(world):
    images, labels = _images(7)
    whole = extract(_backbone(), _batches(images, labels, 1))
    barrier, boxes = Barrier(world), [[] for _ in range(world)]

    def run(rank):
        def all_reduce(tensor):
            boxes[rank].append(tensor)
            turn = len(boxes[rank]) - 1
            barrier.wait(30)
            return sum(box[turn] for box in boxes)

        mine = _Batches(_batches(images[rank::world], labels[rank::world], 1))
        return extract(backbones[rank], mine, gather=interleave(rank, world, all_reduce))

    backbones = [_backbone() for _ in range(world)]
    with ThreadPoolExecutor(world) as pool:
        for found in pool.map(run, range(world)):
            assert torch.equal(found.features, whole.features)
            assert torch.equal(found.labels, whole.labels)
            assert found.num_bad == world


def test_ranks_of_unequal_length_take_turns_until_none_has_more():
    counts, taken = [1, 4, 2], []

    def all_reduce(tensor):
        return torch.tensor(counts) if tensor.shape == (3,) else tensor

    for rank, count in enumerate(counts):
        rows = torch.full((count,), rank + 1) * 10 + torch.arange(count)
        taken.append(interleave(rank, 3, all_reduce)(rows))
    assert sum(taken).tolist() == [10, 20, 30, 21, 31, 22, 23]


@pytest.mark.parametrize(
    ("options", "pool", "layer", "says"),
    [
        ({"class_token": False}, "cls", -1, "pool=mean"),
        ({}, "max", -1, "mean .* or cls"),
        ({}, "mean", 3, "0 to 2"),
        ({}, "mean", -2, "0 to 2"),
    ],
)
def test_a_pooling_or_layer_the_encoder_lacks_is_refused(options, pool, layer, says):
    with pytest.raises(ConfigError, match=says):
        extract(_backbone(**options), [], pool=pool, layer=layer)
