"""Small models with MTO-R, and what the tests of it ask them."""

import dataclasses

import pytest
import torch

from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain.backbones.vit import ViTConfig
from pretrain.objectives.mto_r import MtoRConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.objectives.simmim import SimMIMConfig
from tests.objectives.plain import MEAN, STD

GRID, PATCH, VISIBLE, BATCH, DEPTH = Grid(4, 6), 8, 9, 3, 3
HIDDEN = GRID.num_patches - VISIBLE
VIT = ViTConfig("tiny", patch_size=PATCH, width=48, depth=DEPTH, heads=4)
SIMMIM = SimMIMConfig()
MAE = PixelMAEConfig(decoder_width=32, decoder_depth=DEPTH, decoder_heads=4)
GATE = MtoRConfig(lambda_spa=0.0, lambda_e=0.0, lambda_r=0.0)
LOSSES = MtoRConfig(exclude="none")
OFF = dataclasses.replace(GATE, exclude="none")
both = pytest.mark.parametrize("config", [SIMMIM, MAE], ids=["SimMIM", "MAE"])


def build(config, mto=None, vit=VIT, seed=0):
    torch.manual_seed(seed)
    backbone = vit.build(GRID, 3, MEAN, STD)
    objective = config.build(backbone)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *objective.parameters()):
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.ndim == 2:
                parameter.mul_(2)
    if mto is not None:
        objective.treat(mto, config.treated(vit).depth, seed=0)
    return backbone, objective


def inputs(seed=1, batch=BATCH, num_visible=VISIBLE):
    rng = generator(seed)
    images = torch.randint(0, 256, (batch, 3, 32, 48), dtype=torch.uint8, generator=rng)
    return images, Mask.cut(torch.rand(batch, GRID.num_patches, generator=rng), num_visible)


def run(backbone, objective, images, mask, rng=None):
    return objective(backbone, images, mask, objective.target(images), rng)


def parameters_of(backbone, objective):
    return [p for p in (*backbone.parameters(), *objective.parameters()) if p.requires_grad]


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, found)]
