"""Arithmetic of one training image, and what devices can do: the two sides of MFU (model FLOP utilisation).

Training is three forwards, and two for the patch projection, whose input needs no gradient. A teacher's forward is one.
"""

from __future__ import annotations

import torch

from masking.mask import Grid
from masking.rng import generator
from pretrain.backbones.base import BackboneConfig, Convolutional
from pretrain.backbones.flops import Sizes
from pretrain.config import Config
from pretrain.objectives.base import Taught
from pretrain.objectives.mto_r import TreatedConfig
from pretrain.tokenizers.token_vit import TokenViTConfig

# Dense bf16 matrix products measured on the device where known, else the maker's figure; FLOP/s.
_PEAKS = {"H200": 790e12, "H100": 790e12, "A100": 312e12, "V100": 125e12, "L40S": 362e12, "RTX 4090": 165e12}


def train_flops_per_image(config: Config) -> float:
    """FLOPs of forward and backward for one image of config's run: the encoder and what the objective adds. A frozen
    tokenizer is not counted."""
    (height, width), patch = config.data.image_size, config.backbone.patch_size
    grid = Grid(height // patch, width // patch)
    sizes = sizes_of(config.backbone, grid, config.data.in_chans, _num_visible(config, grid))
    taught = config.objective.target_flops(sizes) if isinstance(config.objective, Taught) else 0.0
    return 3 * (config.objective.forward_flops(sizes) + _mto_flops(config, sizes)) + 2 * sizes.embed_flops + taught


def sizes_of(backbone: BackboneConfig, grid: Grid, in_chans: int, num_visible: int) -> Sizes:
    """What the arithmetic of an image depends on, for an encoder of so many visible patches of grid."""
    width, depth, _ = backbone.dimensions()
    num_values, num_codes = in_chans * backbone.patch_size**2, 0
    if isinstance(backbone, TokenViTConfig):
        kind = backbone.tokenizer.kind(in_chans)
        num_values, num_codes = (kind.num_values, 0) if kind.num_codes is None else (0, kind.num_codes)
    return Sizes(
        num_patches=grid.num_patches,
        num_visible=num_visible,
        num_prefix=backbone.num_prefix,
        width=width,
        depth=depth,
        num_values=num_values,
        block=backbone.block_flops,
        grid=grid,
        num_codes=num_codes,
        embed=backbone.embed_flops(num_visible, num_values) if isinstance(backbone, Convolutional) else None,
    )


def _mto_flops(config: Config, sizes: Sizes) -> float:
    if config.mto is None:
        return 0.0
    assert isinstance(config.objective, TreatedConfig)  # checks.py
    treated = config.objective.treated(config.backbone)
    num_hidden = max(1, round(sizes.num_hidden * treated.hidden_share))
    return config.mto.forward_flops(treated, sizes.num_prefix + sizes.num_visible, num_hidden)


def _num_visible(config: Config, grid: Grid) -> int:
    if config.mask is None:
        return grid.num_patches
    return config.mask.ratio.num_visible(grid, generator(config.seed, "flops"))


def peak_flops(device: torch.device, precision: str) -> float | None:
    """bf16 peak of a known GPU, FLOP/s; None where it is not known (CPUs, fp32)."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)
