from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from masking.mask import Grid
from masking.rng import generator
from pretrain.backbones.vit import ViTConfig
from pretrain.engine.load import load_backbone
from pretrain.errors import ConfigError, NumericalError
from pretrain.evaluation.features import extract
from pretrain.generate.feature_space import FeatureSpace, as_pixels, in_batches, own_space, rounded
from tests.engine.load_cases import save

SIZE = (32, 48)  # of the run in load_cases


def _images(n: int, size: tuple[int, int] = SIZE, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator(0, "test"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(tmp_path / "first", 3)
    save(tmp_path / "first", 7)
    return tmp_path / "first"


def _random_space() -> FeatureSpace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ViTConfig("tiny", patch_size=16, width=32, depth=2, heads=2).build(
            Grid(2, 3), 3, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
        )
    return FeatureSpace("random", SIZE, 3, partial(extract, backbone))


def test_features_of_real_images_are_those_of_evaluation() -> None:
    batches, space = in_batches(_images(5), torch.arange(5), 2), _random_space()
    (backbone,) = space.reader.args
    found, expected = space.of(batches), extract(backbone, batches)
    assert torch.equal(found.features, expected.features)
    assert float(found.features.std(dim=0).min()) > 1e-3  # the images do make a difference
    assert found.labels.tolist() == [0, 1, 2, 3, 4]


def test_the_space_of_a_run_is_that_of_its_newest_weights(run: Path) -> None:
    batches = in_batches(_images(2))
    expected = extract(load_backbone(run).backbone, batches).features
    assert torch.equal(own_space(run).of(batches).features, expected)
    assert not torch.equal(own_space(run, step=3).of(batches).features, expected)


def test_a_space_is_named_for_its_run_and_step(run: Path) -> None:
    assert own_space(run).name == "FID-own (run first, step 7)"
    assert own_space(run, step=3).name == "FID-own (run first, step 3)"


def test_floats_go_through_the_door_that_files_go_through() -> None:
    images, space = _images(4), _random_space()
    noise = 0.9 * (torch.rand(images.shape, generator=generator(0, "noise")) - 0.5)  # rounded away again
    floats = ((images.float() + noise) / 255).clamp(0, 1)
    assert torch.equal(rounded(floats), images)
    assert torch.equal(space.of(in_batches(floats)).features, space.of(in_batches(images)).features)


def test_another_size_is_resized_bicubically_over_the_whole_area() -> None:
    images = _images(2, (64, 96))
    small = as_pixels(images, SIZE, 3)
    expected = nn.functional.interpolate(images.float(), size=SIZE, mode="bicubic", antialias=True)
    assert small.dtype == torch.uint8
    assert float((small - expected.clamp(0, 255)).abs().max()) <= 0.5001
    constant = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(as_pixels(constant, SIZE, 3), torch.full((1, 3, *SIZE), 77, dtype=torch.uint8))
    space = _random_space()
    assert torch.equal(space.of(in_batches(images)).features, space.of(in_batches(small)).features)


def test_a_single_channel_is_repeated() -> None:
    grey = _images(2, channels=1)
    assert torch.equal(as_pixels(grey, SIZE, 3), grey.repeat(1, 3, 1, 1))


class _Batches(list):
    def __iter__(self):
        self.bad = []
        yield from super().__iter__()
        self.bad = ["shard-0/000007"]


def test_what_could_not_be_decoded_is_counted_and_progress_is_told(run: Path) -> None:
    done: list[int] = []
    found = own_space(run).of(_Batches(in_batches(_images(5), size=3)), on_progress=done.append)
    assert found.num_bad == 1
    assert done == [3, 2]
    assert found.labels.tolist() == [-1] * 5


def test_images_that_are_not_in_0_to_1_are_refused() -> None:
    floats = torch.rand(2, 3, 8, 8, generator=generator(0, "test"))
    with pytest.raises(ConfigError, match=r"pixels go from -.* to .*; give 0..1"):
        rounded(floats * 2 - 1)
    with pytest.raises(ConfigError, match=r"torch.int64; give \(B, C, H, W\)"):
        rounded(_images(2).long())
    with pytest.raises(ConfigError, match=r"\(3, 32, 48\)"):
        rounded(_images(1)[0])
    with pytest.raises(NumericalError, match="not finite"):
        rounded(floats / 0)
    with pytest.raises(ConfigError, match="2 channels, and the space of features takes 3"):
        as_pixels(_images(2, channels=2), SIZE, 3)
    with pytest.raises(ConfigError, match="one an image"):
        in_batches(_images(3), torch.arange(2))
    assert rounded(floats.new_full((1, 1, 1, 1), 1.0005)).item() == 255
