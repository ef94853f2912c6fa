"""A trained joint sampler (ADJUST) in the place of ReCAP's local passes: one block instead of all, and no memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.engine.load import load_backbone
from pretrain.errors import ConfigError
from pretrain.objectives.joint_sampler import JointSampler
from pretrain.objectives.maskgit import MaskGIT
from pretrain.objectives.token_model import Canvas, TokenModel
from pretrain.tokenizers.token_vit import TokenViT


@dataclass(frozen=True)
class Joint:
    """The block, and the ways to it and back."""

    backbone: TokenViT
    objective: JointSampler

    @classmethod
    def of(cls, run_dir: Path, weights: str = "ema", step: int | None = None, device: str = "cpu") -> Joint:
        """That of a run's checkpoint. Raises ConfigError where the run trains no joint sampler."""
        loaded = load_backbone(run_dir, weights, step, with_objective=True)
        backbone, objective = loaded.backbone, loaded.objective
        if not isinstance(backbone, TokenViT) or not isinstance(objective, JointSampler):
            name = type(loaded.config.objective).__name__.removesuffix("Config")
            raise ConfigError(f"{run_dir} trained {name}; --joint wants a run of configs/joint_maskgit_cifar.py, say")
        return cls(backbone.to(device), objective.to(device))

    def check(self, backbone: TokenViT, objective: TokenModel) -> None:
        """Raises ConfigError where it was not trained for this very model."""
        if not isinstance(objective, MaskGIT) or not self.objective.base.is_of(backbone, objective):
            raise ConfigError(
                "the joint sampler was trained for another model, or other weights of it, than the one that generates; "
                f"its own is objective.base={self.objective.config.base}, by its average of weights where it keeps one"
            )

    def look_again(self, known: Tensor, canvas: Canvas, targets: Tensor, num_filled: int) -> Tensor:
        """Logits (B, n, K) float32 of targets (B, n), of which the first so many were filled since a full pass left
        features known (B, N, D)."""
        backbone = self.backbone
        revealed = torch.zeros_like(canvas.known).scatter(1, targets[:, :num_filled], True)
        labels = torch.where(canvas.prefix == backbone.mask_id, -1, canvas.prefix - (backbone.num_codes or 0))
        said = self.objective.look_again(backbone, known, canvas.tokens, revealed, labels)
        return said.gather(1, targets[..., None].expand(-1, -1, said.shape[2]))
