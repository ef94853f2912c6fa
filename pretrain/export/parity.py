"""The proof of an export: names and shapes of tensors, and the features of random images by both sides."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from masking.rng import generator
from pretrain.backbones.base import Backbone
from pretrain.errors import ConfigError
from pretrain.export.report import ExportError, Parity
from pretrain.patches import normalize

TOLERANCE = 1e-5  # of the largest feature; float32 sums in another order differ by about 1e-6 of it


class Sample(NamedTuple):
    """Random images, and what our encoder makes of them."""

    images: Tensor  # (B, C, H, W) uint8
    normal: Tensor  # (B, C, H, W) float32, normalised as the encoder is used to
    sequence: Tensor  # (B, num_prefix + N, D) behind the last norm


@torch.no_grad()
def sample(backbone: Backbone, batch: int = 2) -> Sample:
    """So many random images and their features, the same on every call."""
    p, grid = backbone.patch_size, backbone.grid
    shape = (batch, backbone.in_chans, grid.height * p, grid.width * p)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "export"))
    sequence = backbone.eval()(backbone.embed(images)).sequence
    return Sample(images, normalize(images, backbone.mean, backbone.std), sequence)


def proved(theirs: Tensor, ours: Tensor, loaded: int, by: str) -> Parity:
    """The Parity of a reader (by) that loaded so many tensors and made theirs of what is ours. Raises ExportError where
    they differ by more than TOLERANCE of the largest."""
    if theirs.shape != ours.shape:
        shapes = f"{list(theirs.shape)}, and ours are {list(ours.shape)}"
        raise ExportError(f"{by} gives features {shapes}; nothing was written")
    difference, scale = float((ours - theirs).abs().max()), float(ours.abs().max())
    if not difference <= TOLERANCE * scale:
        raise ExportError(
            f"{by} gives features that differ by {difference:.2e}, and {TOLERANCE * scale:.2e} is allowed; nothing was "
            "written"
        )
    return Parity(loaded, difference, scale, by)


def require_names(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], by: str) -> None:
    """Raises ExportError, naming tensors, where found are not just those that by wants, in their shapes."""
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unexpected:
        raise ExportError(f"{by} misses {missing[:5]} and does not know {unexpected[:5]}; nothing was written")
    shapes = [f"{name} {list(found[name].shape)} for {list(shape)}" for name, shape in wanted.items()
              if tuple(found[name].shape) != tuple(shape)]  # fmt: skip
    if shapes:
        raise ExportError(f"{by} wants other shapes: {', '.join(shapes[:5])}; nothing was written")


def by_contract(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], library: str, why: str) -> Parity:
    """The Parity of a file whose reader could not be asked, for its names and shapes are those known of library."""
    require_names(found, wanted, library)
    return Parity(len(found), None, 0.0, f"checked against a committed contract of names and shapes: {why}")


def library(name: str) -> ModuleType | None:
    """A module that may not be installed, or not work beside what is; None then."""
    try:
        return importlib.import_module(name)
    except (ImportError, AssertionError):  # OpenMMLab's packages assert each other's versions
        return None


def needed(name: str, target: str) -> ModuleType:
    """A module that a target cannot do without. Raises ConfigError with what to install."""
    found = library(name)
    if found is None:
        raise ConfigError(f"--to {target} needs {name}, which is not installed; pip install 'lacuna[export]'")
    return found
