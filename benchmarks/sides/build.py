"""What benchmarks/step.py compares: each side is a model, an optimizer and one function that trains a step."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sides.plain import PlainMAE
from masking.draw import draw
from masking.mask import Grid
from masking.rng import generator
from masking.strategies.uniform import Uniform
from pretrain.backbones.vit import ViTConfig
from pretrain.data.settings import DataConfig
from pretrain.objectives.pixel import PixelMAEConfig

GRID, VISIBLE = Grid(14, 14), 49
DATA = DataConfig(train="")  # for its mean and standard deviation


@dataclass
class Side:
    """One of the things compared."""

    name: str
    dtype: str  # fp32, bf16 or amp
    step: Callable[[int], Tensor]  # number of the step -> loss
    model: nn.Module
    losses: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mb: float | None = None  # of device memory above what all sides hold at rest, an image
    saved_mb: float = 0.0  # kept for backward, an image


class Masters:
    """fp32 copies of bf16 parameters, updated by fused AdamW and rounded back."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.masters = [nn.Parameter(parameter.detach().float()) for parameter in parameters]
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.optimizer = _adamw(self.masters)

    def step(self) -> None:
        """One update from the parameters' gradients."""
        with torch.no_grad():
            torch._foreach_copy_([master.grad for master in self.masters], [p.grad for p in self.parameters])
            self.optimizer.step()
            torch._foreach_copy_(self.parameters, self.masters)


def all_sides(options: argparse.Namespace, images: Tensor) -> list[Side]:
    """Every side that options ask for, all from the same weights."""
    source = _ours(options.model)
    state = {name.removeprefix("objective."): value for name, value in source.state_dict().items()}
    state["decoder.pos_embed"] = source["objective"].decoder.pos_embed
    ours = dict(source.state_dict())
    del source
    sides = [plain_side(options, images, state, amp=False)]
    if options.amp:
        sides.append(plain_side(options, images, state, amp=True))
    sides += [our_side(options, images, ours, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return sides


def plain_side(options: argparse.Namespace, images: Tensor, state: dict[str, Tensor], amp: bool) -> Side:
    """benchmarks/sides/plain.py with torch's default AdamW."""
    config, objective = ViTConfig(options.model), PixelMAEConfig()
    decoder = (objective.decoder_width, objective.decoder_depth, objective.decoder_heads)
    with torch.device(options.device):
        model = PlainMAE(16, GRID.num_patches, config.dimensions(), decoder, DATA.mean, DATA.std)
    model.load_state_dict(state)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05)

    def step(number: int) -> Tensor:
        noise = torch.rand(
            len(images),
            GRID.num_patches,
            generator=generator(0, "mask", number, device=images.device),
            device=images.device,
        )
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            loss = model(images, noise, VISIBLE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    dtype = "amp" if amp else "fp32"
    return Side(f"plain {dtype}", dtype, step, model)


def our_side(options: argparse.Namespace, images: Tensor, state: dict[str, Tensor], dtype: torch.dtype) -> Side:
    """Lacuna's encoder and objective, and fused AdamW."""
    model = _ours(options.model).to(options.device)
    model.load_state_dict({**model.state_dict(), **state}, strict=False)
    model.to(dtype)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Masters(parameters) if dtype == torch.bfloat16 else _adamw(parameters)
    rows = torch.arange(len(images))
    forward: Any = model["objective"]
    if options.compile:
        forward = torch.compile(forward)

    def step(number: int) -> Tensor:
        mask = draw(Uniform(), GRID, rows, 0, number, device=images.device)
        losses, _ = forward(model["backbone"], images, mask, None)
        loss = losses["pixel"].mean()
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        optimizer.step()
        return loss.detach()

    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return Side(f"ours {name}", name, step, model)


def _ours(size: str) -> nn.ModuleDict:
    torch.manual_seed(1)
    backbone = ViTConfig(size).build(GRID, 3, DATA.mean, DATA.std)
    return nn.ModuleDict({"backbone": backbone, "objective": PixelMAEConfig().build(backbone)})


def _adamw(parameters: list[Any]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
