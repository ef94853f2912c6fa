"""What benchmarks/illama_step.py compares: in each case, Lacuna's iLLaMA and the eager one from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.sides.eager_illama import EagerIllama, EagerMAE, EagerSupervised
from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain.backbones.illama import IllamaConfig
from pretrain.data.settings import DataConfig
from pretrain.objectives.pixel import PixelMAEConfig

DATA = DataConfig(train="")  # for its mean and standard deviation
CASES = ("supervised", "mae")


@dataclass
class Side:
    """One of the two things compared."""

    name: str
    model: nn.Module
    loss: Callable[[int], Tensor]  # number of the step -> ()
    set_alpha: Callable[[float], object]
    compiled: Callable[[int], Tensor] | None = None  # the loss as torch.compile makes it, where it is to be timed
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def step(self, number: int, eager: bool = False) -> Tensor:
        """Forward and backward, compiled where it can be unless `eager`; the loss, ()."""
        for parameter in self.model.parameters():
            parameter.grad = None
        loss = self.loss(number) if eager or self.compiled is None else self.compiled(number)
        loss.backward()
        return loss.detach()


def sides(
    case: str, config: IllamaConfig, grid: Grid, objective: PixelMAEConfig, images: Tensor, dtype: torch.dtype
) -> tuple[Side, Side]:
    """(eager, ours) of "supervised" or "mae", in dtype, on images (B, C, H, W) uint8; a quarter of the patches is
    visible to MAE, the same ones to both sides."""
    torch.manual_seed(1)
    ours = nn.ModuleDict({"backbone": config.build(grid, 3, DATA.mean, DATA.std)})
    eager_encoder = EagerIllama(3, config.patch_size, grid.num_patches, config.dimensions())
    state = {name: value for name, value in ours.state_dict().items() if not name.endswith(("alpha", "layout"))}
    eager: nn.Module
    if case == "mae":
        ours["objective"] = objective.build(ours["backbone"])
        decoder = (objective.decoder_width, objective.decoder_depth, objective.decoder_heads)
        eager = EagerMAE(eager_encoder, config.patch_size, config.dimensions(), decoder, DATA.mean, DATA.std)
        state |= ours["objective"].state_dict()
        state["decoder.pos_embed"] = ours["objective"].decoder.pos_embed
    else:
        eager = EagerSupervised(eager_encoder, DATA.mean, DATA.std)
    eager.load_state_dict(state)
    scale = eager.mean, eager.std  # they keep 32 bits: the images are no sharper on our side
    eager.to(images.device, dtype)
    eager.mean, eager.std = (x.to(images.device) for x in scale)
    ours.to(images.device, dtype)
    losses = _mae(ours, eager, images) if case == "mae" else _supervised(ours, eager, images)
    return (
        Side("eager", eager, losses[0], lambda alpha: setattr(eager_encoder, "alpha", alpha)),
        Side("ours", ours, losses[1], lambda alpha: ours["backbone"].alpha.fill_(alpha)),
    )


def _supervised(ours: nn.ModuleDict, eager: nn.Module, images: Tensor) -> tuple[Callable[[int], Tensor], ...]:
    backbone = ours["backbone"]
    wanted = torch.randn(len(images), backbone.width, generator=generator(0, "features")).to(images.device)

    def loss(number: int) -> Tensor:
        features = backbone(backbone.embed(images), only_prefix=True)
        return (features.prefix[:, 0] - wanted).square().mean()

    return lambda number: eager(images, wanted), loss


def _mae(ours: nn.ModuleDict, eager: nn.Module, images: Tensor) -> tuple[Callable[[int], Tensor], ...]:
    backbone, objective = ours["backbone"], ours["objective"]
    num_patches = backbone.grid.num_patches

    def noise(number: int) -> Tensor:
        rng = generator(0, "mask", number, device=images.device)
        return torch.rand(len(images), num_patches, generator=rng, device=images.device)

    def loss(number: int) -> Tensor:
        mask = Mask.cut(noise(number), num_patches // 4)
        return objective(backbone, images, mask, objective.target(images))[0]["pixel"].mean()

    return lambda number: eager(images, noise(number), num_patches // 4), loss
