"""The space of the well-known FID: the 2048 pooled features of an InceptionV3 whose weights the user brings as a file.

Of the two sets of weights there are, those ported from the graph of 2015 (1008 classes, as pytorch-fid publishes them)
are the ones that published FIDs are measured with. Their network pools in two other ways than torchvision's does, which
is put right here. torchvision's own weights (1000 classes) give another number, and it gets another name.

Images are resized to 299 x 299 pixels by the door of feature_space.py, bicubic and averaging, as Parmar et al. 2022 ask
for. Earlier papers resized bilinearly, without averaging: their FIDs are close to these but not the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.evaluation.features import Extracted, evaluating, read
from pretrain.generate.feature_space import Batches, FeatureSpace
from pretrain.timm_shim import ensure_torchvision
from pretrain.weights_file import read_state

_SIDE, _WIDTH = 299, 2048
_CLASSES_2015 = 1008
_AVERAGE = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b")
_MAXIMUM = "Mixed_7c"


def inception_space(weights: Path, *, device: torch.device | str = "cpu") -> FeatureSpace:
    """The space of the network whose weights are in a safetensors file, or one of torch's read as tensors alone. Raises
    ConfigError for a file that is missing or holds something else."""
    state = {name: tensor for name, tensor in read_state(weights).items() if not name.startswith("AuxLogits.")}
    network, is_of_2015 = _network(state, weights)
    name = "FID (Inception of 2015, bicubic)" if is_of_2015 else f"FID-torchvision ({weights.name})"
    reader = partial(_features, network.to(device))
    return FeatureSpace(name, (_SIDE, _SIDE), 3, reader, device)


def _network(state: dict[str, Any], weights: Path) -> tuple[nn.Module, bool]:
    """The network with its weights, without a classifier, and whether it is that of 2015."""
    head = state.get("fc.weight")
    if not isinstance(head, Tensor) or head.ndim != 2:
        raise ConfigError(f"{weights} holds no fc.weight, and so is no InceptionV3 of pytorch-fid or torchvision")
    network: nn.Module = ensure_torchvision().models.inception_v3(
        weights=None, num_classes=len(head), aux_logits=False, transform_input=False, init_weights=False
    )
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise ConfigError(f"the weights in {weights} are not those of an InceptionV3: {lines[:300]}") from error
    network.fc = nn.Identity()
    is_of_2015 = len(head) == _CLASSES_2015
    if is_of_2015:
        pool_as_2015(network)
    return network.eval().requires_grad_(False), is_of_2015


def pool_as_2015(network: nn.Module) -> None:
    """Makes the pooling branches of torchvision's InceptionV3 those of the graph of 2015, by hooks: averages are taken
    over the pixels that are there, not over the zeros around them, and the last block takes the maximum."""
    for name in _AVERAGE:
        network.get_submodule(f"{name}.branch_pool").register_forward_pre_hook(_without_zeros)
    last = network.get_submodule(_MAXIMUM)
    seen: list[Tensor] = []

    def remember(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen[:] = inputs

    def maximum(_: nn.Module, __: tuple[Tensor]) -> tuple[Tensor]:
        return (F.max_pool2d(seen.pop(), kernel_size=3, stride=1, padding=1),)

    last.register_forward_pre_hook(remember)
    last.get_submodule("branch_pool").register_forward_pre_hook(maximum)


def _without_zeros(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The average over 3 x 3 pixels, zeros around the image counted, as that over the pixels of the image."""
    (pooled,) = inputs
    share = F.avg_pool2d(torch.ones_like(pooled[:1, :1]), kernel_size=3, stride=1, padding=1)
    return (pooled / share,)


def _features(
    network: nn.Module,
    batches: Batches,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    on_progress: Callable[[int], None] | None,
) -> Extracted:
    def row(images: Tensor) -> Tensor:
        return network(images.float() / 127.5 - 1)

    with evaluating(network):
        return read(row, _WIDTH, batches, device, dtype=dtype, gather=None, on_progress=on_progress)
