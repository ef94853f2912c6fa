"""A strip of generated images: what a model of tokens can do so far, the same numbers and classes every time."""

from __future__ import annotations

from pathlib import Path

import torch

from masking.recap import Plan
from pretrain.generate.grid import grid_picture
from pretrain.generate.sampler import sample
from pretrain.generate.sampling import Sampling
from pretrain.objectives.token_model import TokenModel
from pretrain.tokenizers.token_vit import TokenViT

_STEPS, _DIFFUSION_STEPS = 16, 25  # of decoding, and of MAR's head: fewer than papers use, for a look


def samples_picture(backbone: TokenViT, objective: TokenModel, num: int, path: Path) -> Path:
    """Writes images 0 to num - 1, of classes 0, 1, 2 and so on where the model is told them, side by side to path, a
    PNG, and returns path."""
    classes, grid = backbone.classes, backbone.grid
    numbers = torch.arange(num)
    sampling = Sampling(Plan(min(_STEPS, grid.num_patches)), diffusion_steps=_DIFFUSION_STEPS)
    tokens = sample(backbone, objective, sampling, numbers, None if classes is None else numbers % classes)
    return grid_picture(backbone.tokenizer.images(tokens, grid).cpu(), path, columns=num)
