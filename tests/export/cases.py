"""Encoders to export, and what export and its readers make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.engine.load import Loaded
from pretrain.export.export import write_export
from pretrain.export.report import ExportReport
from tests.engine.load_cases import CONFIG

SMALL = {"width": 48, "depth": 2, "heads": 3}


def encoder(backbone: ViTConfig | IllamaConfig, size: tuple[int, int] = (224, 224), in_chans: int = 3) -> Loaded:
    """An encoder with weights that are all drawn, so that no wrong place gives the right result."""
    data = replace(CONFIG.data, image_size=size, in_chans=in_chans, mean=(0.4,) * in_chans, std=(0.3,) * in_chans)
    config = replace(CONFIG, data=data, backbone=backbone)
    grid = Grid(size[0] // backbone.patch_size, size[1] // backbone.patch_size)
    torch.manual_seed(0)
    model = backbone.build(grid, in_chans, data.mean, data.std).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.02)
    return Loaded(model, config, 7, "ema")


def written(loaded: Loaded, folder: Path, to: str = "timm") -> ExportReport:
    """loaded, exported into folder."""
    return write_export(loaded, to, folder)


def images_of(loaded: Loaded, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Two random images, (2, C, H, W) uint8."""
    data = loaded.config.data
    shape = (2, data.in_chans, *(size or data.image_size))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def sequence_of(loaded: Loaded, images: torch.Tensor) -> torch.Tensor:
    """Our features of images, (2, L, D)."""
    with torch.no_grad():
        return loaded.backbone(loaded.backbone.embed(images)).sequence


def with_decoder(loaded: Loaded) -> Loaded:
    """loaded, with the decoder of its config, all of its weights drawn too."""
    objective = loaded.config.objective.build(loaded.backbone).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.02)
    return replace(loaded, objective=objective)
