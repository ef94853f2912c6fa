"""Arithmetic of one training image, and what devices can do: the two sides of MFU (model FLOP utilisation).

One multiply-add counts as 2; a block of n tokens and width D costs 24 n D^2 + 4 n^2 D forward; training is three
forwards, and two for the patch projection, whose input needs no gradient.
"""

from __future__ import annotations

import torch

from masking.mask import Grid
from masking.rng import generator
from pretrain.config import Config

# Dense bf16 matrix products measured on the device where known, else the maker's figure; FLOP/s.
_PEAKS = {"H200": 790e12, "H100": 790e12, "A100": 312e12, "V100": 125e12, "L40S": 362e12, "RTX 4090": 165e12}


def train_flops_per_image(config: Config) -> float:
    """FLOPs of forward and backward for one image of config's MAE."""
    (height, width), patch = config.data.image_size, config.backbone.patch_size
    grid = Grid(height // patch, width // patch)
    visible = config.mask.ratio.num_visible(grid, generator(config.seed, "flops"))
    hidden = grid.num_patches - visible
    wide, depth, _ = config.backbone.dimensions()
    values = config.data.in_chans * patch * patch
    prefix = int(config.backbone.class_token) + config.backbone.registers
    encoder = depth * block_flops(visible + prefix, wide)
    embed = 2 * visible * values * wide
    narrow, layers = config.objective.decoder_width, config.objective.decoder_depth
    queries = round(hidden * config.objective.predict_ratio)
    tokens = grid.num_patches + prefix
    decoder = (layers - 1) * block_flops(tokens, narrow) + last_block_flops(queries, tokens, narrow)
    decoder += 2 * (visible + prefix) * wide * narrow + 2 * queries * narrow * values
    return 3 * (encoder + decoder) + 2 * embed


def block_flops(tokens: int, width: int) -> float:
    """Forward FLOPs of a transformer block whose MLP is four times as wide."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def last_block_flops(queries: int, tokens: int, width: int) -> float:
    """Forward FLOPs of a block that computes its queries' rows only."""
    return 20 * queries * width**2 + 4 * tokens * width**2 + 4 * queries * tokens * width


def peak_flops(device: torch.device, precision: str) -> float | None:
    """bf16 peak of a known GPU, FLOP/s; None where it is not known (CPUs, fp32)."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)
