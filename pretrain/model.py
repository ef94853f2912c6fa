"""What DeepSpeed wraps: the encoder that is kept and the objective that is thrown away, as one module."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from masking.mask import Grid, Mask
from masking.rng import prf
from pretrain.backbones.base import Backbone
from pretrain.config import Config
from pretrain.objectives.base import Drawing, Objective, Segmenting
from pretrain.objectives.mask_tokens import MaskTokenObjective
from pretrain.objectives.mto_r import TreatedConfig
from pretrain.sparse.sparsity import Sparsity
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.types import Features, Losses, Target


class PretrainModel(nn.Module):
    """backbone and objective under the names their parameters have in every checkpoint."""

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.sparse: Sparsity | None = None  # what is trained of an encoder that stays as it is; see pretrain/sparse

    def forward(
        self, images: Tensor, mask: Mask, target: Target, noise: Tensor | None = None
    ) -> tuple[Losses, Features]:
        """images (B, C, H, W) uint8 and, for objectives that draw, their noise (B, draws) -> losses,
        name -> (B,) float32, and the encoder's features of the visible patches."""
        run = partial(self.objective, self.backbone, images, mask, target, noise)
        return run() if self.sparse is None else self.sparse.forward(run)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        exempt = _below("objective", self.objective.no_weight_decay())
        sparse = set() if self.sparse is None else self.sparse.undecayed
        return exempt | sparse | _below("backbone", self.backbone.no_weight_decay())

    def moving(self) -> set[str]:
        """Names of buffers that change as training goes on."""
        return _below("backbone", self.backbone.moving()) | _below("objective", self.objective.moving())

    def given(self) -> set[str]:
        """Names of buffers that the run began with and keeps: a checkpoint says them, not the code."""
        return set() if self.sparse is None else self.sparse.given

    def at_step(self, step: int, total_steps: int, steps_per_epoch: float) -> dict[str, float]:
        """Sets what depends on the step about to be trained, and says it by name for the metrics."""
        followed = self.backbone.at_step(step, total_steps, steps_per_epoch)
        sparse = {} if self.sparse is None else self.sparse.at_step(step, total_steps)
        return {**followed, **sparse, **self.objective.at_step(step, total_steps)}


def _below(part: str, names: set[str]) -> set[str]:
    return {f"{part}.{name}" for name in names}


def build_model(config: Config) -> PretrainModel:
    """The model of config with weights drawn from config.seed: the same on every rank and at every world size."""
    backbone = build_backbone(config)
    objective = config.objective.build(backbone)
    if config.mto is not None:
        assert isinstance(objective, MaskTokenObjective) and isinstance(config.objective, TreatedConfig)  # checks.py
        objective.treat(config.mto, config.objective.treated(config.backbone).depth, config.seed)
    return PretrainModel(backbone, objective)


def sparsify(model: PretrainModel, config: Config, *, begins: bool) -> None:
    """Freezes the encoder of a model that has the weights it begins with, where config.sparse says so; begins: it does,
    and a checkpoint will not replace them. Raises ConfigError for positions in another encoder."""
    if config.sparse is not None:
        model.sparse = Sparsity(config.sparse, model.backbone, model.objective, config.seed, begins=begins)


def build_backbone(config: Config) -> Backbone:
    """The encoder alone, with the weights it has in `build_model`'s."""
    torch.manual_seed(prf(config.seed, "init"))
    return config.backbone.build(grid_of(config), config.data.in_chans, config.data.mean, config.data.std)


def num_draws(config: Config) -> int:
    """How many random numbers of each image the objective and MTO-R use in a step; 0: none are drawn."""
    grid = grid_of(config)
    if isinstance(config.objective, Drawing):
        return config.objective.num_draws(config.backbone, grid)
    chooses = config.objective.chooses or (config.mto is not None and config.mto.chooses)
    return grid.num_patches if chooses else 0


def num_labels(config: Config) -> int | None:
    """Among how many classes every sample needs a label, or each of its pixels, for whoever is told of it or decides;
    None: nobody is."""
    if isinstance(config.backbone, TokenViTConfig):
        return config.backbone.classes
    if isinstance(config.objective, Segmenting):
        return config.objective.pixel_classes
    return config.objective.num_classes


def grid_of(config: Config) -> Grid:
    """The patch grid of config's training crops."""
    height, width = config.data.image_size
    return Grid(height // config.backbone.patch_size, width // config.backbone.patch_size)
