"""What may be done to a crop beside the cut: RandAugment (Cubuk et al., "RandAugment", section 3) and random erasing
(Zhong et al., "Random Erasing Data Augmentation", section 3), both timm's, imported only where they are on.

timm draws from the generators that Python, numpy and torch share. Here they are seeded by the crop's key for as long as
one crop takes and put back as they were, so that a crop is the same in every worker, and nobody else's draws move."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from masking.rng import prf
from pretrain.data.settings import DataConfig
from pretrain.errors import ConfigError
from pretrain.timm_shim import import_timm

_POLICY = re.compile(r"rand(-(m|n|p|mmax|mstd|inc)\d+(\.\d+)?)*")


def check_changes(cfg: DataConfig) -> None:
    """Raises ConfigError for a policy that timm cannot read, for images it cannot change, and where timm is missing."""
    if cfg.rand_augment is not None:
        if not _POLICY.fullmatch(cfg.rand_augment):
            raise ConfigError(
                f"data.rand_augment={cfg.rand_augment!r} is no policy of timm's; write rand and then parts like m9, "
                "n2, p0.5, mstd0.5 and inc1 with a dash before each, for example rand-m9-mstd0.5-inc1"
            )
        if cfg.in_chans != 3:
            raise ConfigError(
                f"data.rand_augment={cfg.rand_augment} changes colours and data.in_chans={cfg.in_chans}; set "
                "data.rand_augment=none"
            )
        if cfg.boxes is not None:
            raise ConfigError(
                f"data.rand_augment={cfg.rand_augment} moves what data.boxes={cfg.boxes} marks; set one of them to none"
            )
    if cfg.rand_augment is not None or cfg.erase_prob:
        import_timm()


def change(crop: Tensor, key: int, cfg: DataConfig) -> Tensor:
    """crop (C, H, W) uint8 as cfg wants it changed, by the draws its key names: the same shape and dtype."""
    if cfg.rand_augment is None and not cfg.erase_prob:
        return crop
    with _seeded(key):
        if cfg.rand_augment is not None:
            crop = _augmented(crop, _policy(cfg.rand_augment, cfg.mean))
        return _erased(crop, cfg) if cfg.erase_prob else crop


def _augmented(crop: Tensor, policy: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = Image.fromarray(rearrange(crop, "c h w -> h w c").contiguous().numpy())
    return rearrange(torch.from_numpy(np.array(policy(pixels))), "h w c -> c h w").contiguous()


def _erased(crop: Tensor, cfg: DataConfig) -> Tensor:
    """Noise of deviation 1 in the values a model sees, each pixel by itself (timm's "pixel"), cut off at 0 and 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.mean, cfg.std))
    seen = (crop / 255 - mean) / std
    seen = _timm("data.random_erasing").RandomErasing(cfg.erase_prob, mode="pixel", device="cpu")(seen)
    return ((seen * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


@cache
def _policy(words: str, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment; what it moves into an image from outside has the mean's colour."""
    fill = tuple(round(255 * value) for value in mean)
    policy: Any = _timm("data.auto_augment").rand_augment_transform(words, {"img_mean": fill})
    for operation in policy.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = partial(_posterized, operation.aug_fn)
    changed: Callable[[Image.Image], Image.Image] = policy
    return changed


def _posterized(posterize: Callable[..., Image.Image], image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm asks for 0 bits at one end of its scale, which newer Pillows refuse and older ones made black."""
    return posterize(image, max(1, bits), **options)


def _timm(module: str) -> Any:
    import_timm()
    return importlib.import_module(f"timm.{module}")


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    kept, kept_numpy = random.getstate(), np.random.get_state()
    seed = prf(key, "change")
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)
