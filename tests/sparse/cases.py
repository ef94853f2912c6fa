"""A tiny classifier of images whose class is the direction of their stripes, and plain training of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from masking.mask import Grid, Mask
from pretrain.backbones.vit import ViTConfig
from pretrain.engine.optim import build_optimizer, set_rate
from pretrain.engine.settings import OptimConfig
from pretrain.model import PretrainModel
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.sparse.config import SparseConfig
from pretrain.sparse.sparsity import Sparsity
from pretrain.types import Labels

GRID = Grid(4, 4)
CLASSES = 4


def model(sparse: SparseConfig | None = None, base: Mapping[str, Tensor] | None = None) -> PretrainModel:
    """The classifier, from base's encoder where it is given, and sparse as said."""
    torch.manual_seed(0)
    backbone = ViTConfig("tiny", patch_size=4, width=32, depth=2, heads=2).build(GRID, 3, (0.5,) * 3, (0.25,) * 3)
    made = PretrainModel(backbone, SupervisedConfig(CLASSES, 0.0, "mean").build(backbone))
    if base is not None:
        backbone.load_state_dict(base)
    if sparse is not None:
        made.sparse = Sparsity(sparse, backbone, made.objective, 0, begins=True)
    return made.train()


def batch(step: int, size: int = 32, channel: int = 0) -> tuple[Tensor, Labels]:
    """Images (B, 3, 16, 16) uint8 of a step, and their classes; only one channel has the stripes."""
    rng = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (size,), generator=rng)
    angle = (labels * torch.pi / CLASSES).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    phase = torch.rand(size, 1, 1, generator=rng) * 6.28
    stripes = (angle.cos() * x + angle.sin() * y + phase).sin() * 60
    images = 128 + 40 * torch.randn(size, 3, 16, 16, generator=rng)
    images[:, channel] += stripes
    return images.clamp(0, 255).to(torch.uint8), Labels.single(labels)


def train(made: PretrainModel, steps: int, lr: float, weight_decay: float = 0.05, channel: int = 0) -> float:
    """Trains made by the engine's own AdamW; its loss on held-out images."""
    optimizer = build_optimizer(made, OptimConfig(weight_decay=weight_decay))
    for step in range(steps):
        torch.manual_seed(step)
        made.at_step(step, steps, 1.0)
        losses = loss_of(made, step, channel=channel)
        optimizer.zero_grad()
        torch.stack([values.mean() for values in losses.values()]).sum().backward()
        set_rate(optimizer, lr)
        optimizer.step()
    return held_out(made, channel)


def loss_of(made: PretrainModel, step: int, size: int = 32, channel: int = 0) -> dict[str, Tensor]:
    """Losses of a step's batch, name -> (B,)."""
    images, labels = batch(step, size, channel)
    mask = Mask.of_nothing(len(images), GRID, images.device)
    return made(images, mask, made.objective.target(images, labels))[0]


@torch.no_grad()
def held_out(made: PretrainModel, channel: int = 0) -> float:
    """Its loss on images it was not trained on, in eval mode."""
    made.eval()
    loss = float(loss_of(made, 10_000, 256, channel)["class"].mean())
    made.train()
    return loss
