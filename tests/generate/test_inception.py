from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from masking.rng import generator
from pretrain.errors import ConfigError
from pretrain.generate.feature_space import in_batches
from pretrain.generate.inception import inception_space, pool_as_2015
from pretrain.timm_shim import ensure_torchvision


def _network(num_classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ensure_torchvision().models.inception_v3(
            weights=None, num_classes=num_classes, aux_logits=False, transform_input=False, init_weights=False
        ).eval()  # fmt: skip


def _pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "test"))


def test_features_are_those_before_the_classifier_and_the_weights_decide_on_the_name(tmp_path: Path) -> None:
    images = _pixels(1, 3, 299, 299)
    found = {}
    for num_classes in (1000, 1008):
        network = _network(num_classes)
        path = tmp_path / f"weights-{num_classes}.safetensors"
        aux = {"AuxLogits.fc.weight": torch.zeros(2, 2)}  # torchvision's file has them, and nobody asks for them
        save_file(network.state_dict() | aux, path)
        space = inception_space(path)
        found[space.name] = space.of(in_batches(images)).features
        network.fc = nn.Identity()
        with torch.no_grad():
            plain = network(images / 127.5 - 1)
        assert found[space.name].shape == (1, 2048)
        difference = float((found[space.name] - plain).abs().max() / plain.abs().max())
        assert difference < 1e-5 if num_classes == 1000 else difference > 0.05
    assert list(found) == ["FID-torchvision (weights-1000.safetensors)", "FID (Inception of 2015, bicubic)"]


@pytest.mark.parametrize(("name", "channels"), [("Mixed_5b", 192), ("Mixed_6b", 768), ("Mixed_7b", 1280)])
def test_averages_are_taken_over_pixels_that_are_there(name: str, channels: int) -> None:
    network = _network(1008)
    block, x = network.get_submodule(name), _pixels(2, channels, 5, 7) / 255
    with torch.no_grad():
        before = block(x)
        pool_as_2015(network)
        after = block(x)
        branch = block.branch_pool
        branch._forward_pre_hooks.clear()
        expected = branch(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    assert torch.allclose(after[:, -expected.shape[1] :], expected, atol=1e-6)
    assert torch.equal(after[:, : -expected.shape[1]], before[:, : -expected.shape[1]])
    assert not torch.allclose(after, before, atol=1e-4)


def test_the_last_block_takes_the_maximum() -> None:
    network = _network(1008)
    block, x = network.get_submodule("Mixed_7c"), _pixels(2, 2048, 4, 4) / 255
    pool_as_2015(network)
    with torch.no_grad():
        after = block(x)
        block.branch_pool._forward_pre_hooks.clear()
        expected = block.branch_pool(F.max_pool2d(x, 3, 1, 1))
    assert torch.allclose(after[:, -192:], expected, atol=1e-6)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"holds no fc.weight"):
        inception_space(tmp_path / "a.safetensors")
    save_file({"fc.weight": torch.zeros(8, 2048)}, tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="not those of an InceptionV3"):
        inception_space(tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        inception_space(tmp_path / "missing.safetensors")
