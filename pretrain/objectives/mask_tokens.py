"""What objectives have in common whose mask tokens go through blocks where others see them: MTO-R may be added, and how
unlike the visible tokens they are can be looked at, with MTO-R or without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from masking.mask import Mask
from masking.mto import heterogeneity
from masking.rng import generator
from pretrain.backbones.base import Backbone
from pretrain.backbones.treatment import Figures, Treatment
from pretrain.objectives.base import Objective
from pretrain.objectives.mto_r import MtoR, MtoRConfig
from pretrain.types import Target

_OFF = MtoRConfig(exclude="none", lambda_spa=0.0, lambda_e=0.0, lambda_r=0.0)


class MaskTokenObjective(Objective):
    """An objective that MTO-R can be added to."""

    mto: MtoR | None

    def treat(self, config: MtoRConfig, depth: int, seed: int) -> None:
        """Adds MTO-R in depth blocks. Weights stay as they are; a frozen mask token follows from seed."""
        self.mto = MtoR(config, depth)
        if config.frozen_token is not None:
            token = self.token()
            token.data = config.frozen_token * torch.randn(token.shape, generator=generator(seed, "mto", "token"))
            token.requires_grad_(False)

    def token(self) -> nn.Parameter:
        """The mask token."""
        raise NotImplementedError(f"{type(self).__name__} does not say which its mask token is")

    def treated_blocks(self, backbone: Backbone) -> nn.ModuleList | None:
        """The blocks that the mask token goes through; None where they take no treatment."""
        raise NotImplementedError(f"{type(self).__name__} does not say which blocks its mask token goes through")

    def watch(self, backbone: Backbone, images: Tensor, mask: Mask, treatment: Treatment) -> Tensor:
        """Takes images through these blocks under treatment; returns the seen tokens as they come before positions are
        added, (B, V, D)."""
        raise NotImplementedError(f"{type(self).__name__} cannot be watched")

    def moving(self) -> set[str]:
        """How far MTO-R's weights have risen."""
        return set() if self.mto is None else {"mto.ramp"}

    def at_step(self, step: int, total_steps: int) -> dict[str, float]:
        """As MTO-R has it."""
        return {} if self.mto is None else self.mto.at_step(step, total_steps)

    @torch.no_grad()
    def inspect(self, backbone: Backbone, images: Tensor, mask: Mask, target: Target) -> dict[str, Any]:
        """{"heterogeneity": values by name}, means over images, with MTO-R or without: a list over the blocks for each
        of `Figures` and for the hidden keys that are excluded; the first block's figures if no token had a position
        ("bare"); counts of tokens; and what is followed as curves: H = 1 - entropy, its mean over the first half of the
        blocks ("early") and over the last ("late"), and the norm of the mask token."""
        blocks = self.treated_blocks(backbone)
        if blocks is None or not mask.num_hidden:
            return {}
        mto = MtoR(_OFF, len(blocks)) if self.mto is None else self.mto
        treatment = mto.treatment(mask, mask.ids_mask, backbone.num_prefix, None, is_watched=True)
        assert treatment is not None and treatment.figures is not None
        seen, token = self.watch(backbone, images, mask, treatment), self.token()
        tokens = torch.cat([seen, token.expand(len(seen), 1, -1).to(seen.dtype)], dim=1)
        bare = heterogeneity(blocks[0].norm1(tokens), seen.shape[1], mto.config.tau)  # type: ignore[operator]
        columns = zip(*treatment.figures, strict=True)
        found: dict[str, Any] = {
            name: [_mean(values) for values in column] for name, column in zip(Figures._fields, columns, strict=True)
        }
        found["excluded"] = [plan.excluded for plan in treatment.plans]
        found["bare"] = {name: _mean(values) for name, values in bare._asdict().items()}
        found["tokens"] = {"seen": treatment.num_seen, "hidden": mask.num_hidden}
        found["early"], found["late"] = _halves([1 - entropy for entropy in found["entropy"]])
        return {"heterogeneity": {**found, "token_norm": round(float(token.norm()), 6)}}


def _halves(values: list[float]) -> tuple[float, float]:
    """Means of the first half of values and of the last; one in the middle is in neither, a single one in both."""
    half = max(1, len(values) // 2)
    return round(sum(values[:half]) / half, 6), round(sum(values[-half:]) / half, 6)


def _mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 6)
